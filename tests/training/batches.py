"""Training batches of the tiny models."""

import numpy as np

from janus_jax.data.pipeline.examples import Example, Supervision, text_positions, text_targets
from janus_jax.data.pipeline.packing import Budget, pack
from tests import tiny

BUDGET = Budget(tokens=128, und_images=2, gen_images=2, text_targets=96)
FLOW_BUDGET = Budget(tokens=224, und_images=1, gen_images=2, text_targets=96)
QUESTION = [
    {"role": "user", "content": "<image_placeholder>\nWhat is in the picture?"},
    {"role": "assistant", "content": "A small red boat."},
]


def example(sequence, supervision=Supervision.TEXT):
    starts = np.flatnonzero(sequence.gen_token_index == 0)
    targets = text_targets(sequence, supervision, text_positions(sequence))
    return Example("test", sequence, targets, starts.astype(np.int32))


def text(seed=0, config=tiny.CONFIG):
    return example(tiny.processor(config).text_sequence(tiny.CORPUS[seed % 3]))


def understanding(seed=0, config=tiny.CONFIG):
    return example(tiny.processor(config).understanding_sequence(QUESTION, [tiny.picture(seed)], system_prompt=""))


def generation(seed=0, config=tiny.CONFIG):
    return example(tiny.processor(config).generation_sequence("Two birds.", tiny.picture(seed)))


def batch(sequences, budget=BUDGET, seed=0):
    """Packed examples with random image tokens."""
    packed = pack(sequences, budget, tiny.processor())
    shape = (*packed.gen_images.shape[:2], tiny.CONFIG.gen_encoder.num_tokens)
    ids = np.random.default_rng(seed).integers(0, tiny.CONFIG.gen_encoder.codebook_size, shape, np.int32)
    return packed._replace(gen_ids=ids, gen_images=packed.gen_images[:, :0])


def flow_batch(sequences, budget=FLOW_BUDGET):
    """Packed examples of the tiny JanusFlow."""
    return pack(sequences, budget, tiny.processor(tiny.FLOW))


def mixed(num_sequences=8, kind="janus"):
    """Sequences of different tasks and numbers of targets; the last is empty."""
    config, make = (tiny.CONFIG, batch) if kind == "janus" else (tiny.FLOW, flow_batch)
    kinds = [
        [understanding(1, config), generation(2, config)],
        [text(0, config), text(1, config), text(2, config)],
        [generation(3, config)],
        [understanding(4, config), text(5, config)],
        [generation(6, config), understanding(7, config)],
        [understanding(8, config)],
        [text(9, config)],
    ]
    return make([*[kinds[i % 7] for i in range(num_sequences - 1)], []])
