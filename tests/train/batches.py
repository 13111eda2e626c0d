"""Training batches of the tiny model, one or several samples a row."""

import numpy as np

from janus_jax.data.packing import Budget, Sample, lay
from janus_jax.data.tasks import Supervision, text_targets
from tests import tiny

BUDGET = Budget(places=128, und_images=2, gen_images=2, text_targets=96)
QUESTION = [
    {"role": "user", "content": "<image_placeholder>\nWhat is in the picture?"},
    {"role": "assistant", "content": "A small red boat."},
]


def sample(row, supervision=Supervision.TEXT):
    drawn = np.flatnonzero(row.gen_places == 0)
    return Sample("test", row, text_targets(row, supervision), drawn.astype(np.int32))


def text(seed=0):
    return sample(tiny.processor().text_row(tiny.CORPUS[seed % 3]))


def understanding(seed=0):
    return sample(tiny.processor().understanding_row(QUESTION, [tiny.picture(seed)], system_prompt=""))


def generation(seed=0):
    return sample(tiny.processor().generation_row("Two birds.", tiny.picture(seed)))


def batch(rows, budget=BUDGET, seed=0):
    """Rows of samples, the ids of their images to generate drawn at random."""
    laid = lay(rows, budget, tiny.processor())
    shape = (*laid.gen_images.shape[:2], tiny.CONFIG.gen_encoder.num_tokens)
    ids = np.random.default_rng(seed).integers(0, tiny.CONFIG.gen_encoder.codebook_size, shape, np.int32)
    return laid._replace(gen_ids=ids, gen_images=laid.gen_images[:, :0])


def mixed(rows=8):
    """Rows of different tasks and numbers of supervised places; the last holds nothing."""
    kinds = [
        [understanding(1), generation(2)],
        [text(0), text(1), text(2)],
        [generation(3)],
        [understanding(4), text(5)],
        [generation(6), understanding(7)],
        [understanding(8)],
        [text(9)],
    ]
    return batch([*[kinds[i % 7] for i in range(rows - 1)], []])
