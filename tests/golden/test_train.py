"""Losses, gradients and one optimizer step against the PyTorch implementation, in float32.

The values are the same if the two examples are in a sequence each, in one sequence, or sharded over a mesh.
"""

from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.released import LAYOUT, config_from_json, unused_shapes
from janus_jax.batch import NO_IMAGE, NO_POSITION, PADDING_SEGMENT, Batch
from janus_jax.config import Execution
from janus_jax.models.janus import Janus
from janus_jax.processing import open_image, prepare_understanding
from janus_jax.sharding import make_mesh
from janus_jax.training.objectives import TokenObjective
from janus_jax.training.optimizers import OptimizerConfig, make_optimizer
from janus_jax.training.param_paths import partition
from janus_jax.training.state import abstract_train_state, state_from_params
from janus_jax.training.train_step import Microbatching, make_train_step, put_batch
from tests.golden.conftest import assert_close, golden_set


class Golden:
    """Model, expected values and examples of the golden set."""

    def __init__(self):
        self.golden = golden_set("janus", "janus_small")
        file = self.golden.path / "train.npz"
        if not file.is_file():
            pytest.skip(f"{self.golden.path} holds no training values")
        with np.load(file) as values:
            self.expected = {name: values[name] for name in values.files}
        self.config = config_from_json(JsonObject(self.golden.config, "config.json"), self.golden.shapes)
        self.model = Janus(self.config, Execution())

    def params(self):
        """Builds the parameters. They are not kept, because they take half a gigabyte."""
        # Copies, because the training step donates its input.
        return jax.tree.map(np.array, self.golden.params(LAYOUT, self.config, self.model.execution))

    def tensors(self, tree):
        """Yields name and value of each released tensor whose parameter is in the tree."""
        for unit in LAYOUT.map(model_parameters(self.config)):
            node = tree
            for key in unit.parameter.keys:
                node = node.get(key) if isinstance(node, dict) else None
            if node is not None:
                yield from unit.write(np.asarray(node) if unit.layer is None else np.asarray(node[unit.layer]))

    def examples(self):
        """Returns both examples as (ids, und_patch_index, gen_token_index, text targets, start of the target image)."""
        placeholder = int(self.golden.expected["special_ids"][-1])
        und = self.expected["train_und_ids"]
        is_image = und == placeholder
        und_patch_index = np.where(is_image, np.cumsum(is_image) - 1, NO_IMAGE)
        targets = np.arange(int(self.expected["train_und_supervised_from"]), len(und))
        prompt, codes = self.expected["train_gen_prompt"], self.expected["train_gen_codes"]
        gen = np.concatenate([prompt, np.full(len(codes), placeholder, np.int32)])
        gen_token_index = np.concatenate([np.full(len(prompt), NO_IMAGE), np.arange(len(codes))])
        no_und, no_gen = np.full(len(gen), NO_IMAGE), np.full(len(und), NO_IMAGE)
        return (
            (und, und_patch_index, no_gen, targets, NO_POSITION),
            (gen, no_und, gen_token_index, np.array([]), len(prompt)),
        )

    def batch(self, sequences, length):
        """Packs examples into a batch, given the list of examples of each sequence."""
        size = self.config.und_encoder.image_size
        codes = self.expected["train_gen_codes"]
        image = prepare_understanding(open_image(self.golden.images[0]), size)
        shape = (len(sequences), length)
        batch = Batch(
            tokens=np.zeros(shape, np.int32),
            segment_ids=np.full(shape, PADDING_SEGMENT, np.int32),
            positions=np.zeros(shape, np.int32),
            und_patch_index=np.full(shape, NO_IMAGE, np.int32),
            gen_token_index=np.full(shape, NO_IMAGE, np.int32),
            und_images=np.zeros((len(sequences), 1, size, size, 3), np.uint8),
            gen_images=np.zeros((len(sequences), 0, 16, 16, 3), np.uint8),
            text_targets=np.full((len(sequences), 16), NO_POSITION, np.int32),
            gen_starts=np.full((len(sequences), 1), NO_POSITION, np.int32),
            gen_ids=np.zeros((len(sequences), 1, len(codes)), np.int32),
        )
        for number, examples in enumerate(sequences):
            offset = 0
            for segment, (ids, und_patch_index, gen_token_index, targets, start) in enumerate(examples, 1):
                positions = np.s_[number, offset : offset + len(ids)]
                batch.tokens[positions], batch.segment_ids[positions] = ids, segment
                batch.positions[positions] = np.arange(len(ids))
                batch.und_patch_index[positions], batch.gen_token_index[positions] = und_patch_index, gen_token_index
                batch.text_targets[number, : len(targets)] = targets + offset if len(targets) else NO_POSITION
                if (und_patch_index != NO_IMAGE).any():
                    batch.und_images[number, 0] = image
                if start != NO_POSITION:
                    batch.gen_starts[number, 0], batch.gen_ids[number, 0] = start + offset, codes
                offset += len(ids)
        return batch


TRAINED = ("und_encoder/*", "und_adaptor/*", "gen_embed/*", "gen_adaptor/*", "gen_head/*", "llm/*")
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1)


class Gradient(NamedTuple):
    """Values of a clipped gradient that are compared."""

    norm: np.ndarray
    maximum: np.ndarray
    slice: np.ndarray


class Stepped:
    """Results of one training step by released tensor name. Only compared values are kept, to save memory."""

    def __init__(self, golden, sequences, length, mesh=None):
        self.expected, self.config = golden.expected, golden.config
        objective, optimizer = TokenObjective(golden.model), make_optimizer(OPTIMIZER, total_steps=1)
        abstract = abstract_train_state(objective, TRAINED, optimizer, mesh)
        state = state_from_params(*partition(golden.params(), TRAINED), optimizer, abstract)
        # This chunk size divides neither 16 nor 576 targets, so that the last chunk is padded.
        step = make_train_step(objective, optimizer, Microbatching(logits_chunk=100), abstract, mesh)
        state, metrics = step(state, put_batch(golden.batch(sequences, length), mesh))
        self.metrics = {name: float(value) for name, value in metrics.items()}
        self.after = {name: strided(value).copy() for name, value in golden.tensors(state.params)}
        # Adam's first moment after one step is the clipped gradient times 1 - b1.
        ((_, mu),) = optax.tree.get_all_with_path(state.opt_state, "mu")
        moments = ((name, moment / (1 - OPTIMIZER.b1)) for name, moment in golden.tensors(mu))
        self.clipped = {
            name: Gradient(np.linalg.norm(value.astype(np.float64)), np.abs(value).max(), strided(value).copy())
            for name, value in moments
        }


@pytest.fixture(scope="module")
def golden():
    return Golden()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("two sequences", marks=pytest.mark.nightly),
        "one sequence, on a mesh",
        pytest.param("one sequence", marks=pytest.mark.nightly),
        pytest.param("two sequences, on a mesh", marks=pytest.mark.nightly),
    ],
)
def stepped(request, golden):
    und, gen = golden.examples()
    match request.param:
        case "two sequences":
            return Stepped(golden, [[und], [gen]], 640)
        case "one sequence":
            return Stepped(golden, [[und, gen]], 1216)
        case "one sequence, on a mesh":
            return Stepped(golden, [[gen, und]], 1216, make_mesh(1, 1, 2, jax.devices()[:2]))
        case "two sequences, on a mesh":
            return Stepped(golden, [[], [gen], [], [und]], 640, make_mesh(2, 2, 2))


def strided(array):
    """Returns the part of a tensor that the golden set stores."""
    return array[::4] if array.ndim == 1 else array[::16, ::8]


def named(stepped, prefix):
    return {name.removeprefix(prefix): value for name, value in stepped.expected.items() if name.startswith(prefix)}


@pytest.mark.slow
def test_losses(stepped):
    sums = [
        stepped.metrics[f"loss/{task}"] * stepped.metrics[f"tokens/{task}"] for task in ("understanding", "generation")
    ]
    expected = stepped.expected
    np.testing.assert_allclose(sums, [expected["train_text_loss_sum"], expected["train_image_loss_sum"]], rtol=1e-5)
    np.testing.assert_allclose(stepped.metrics["loss"], expected["train_loss"], rtol=1e-5)


def test_counts(stepped):
    counts = [stepped.metrics[f"tokens/{task}"] for task in ("text", "understanding", "generation")]
    assert counts == [0, *stepped.expected["train_counts"]]


def test_gradient_norm_of_every_tensor(stepped):
    norms = dict(zip(stepped.expected["train_grad_names"], stepped.expected["train_grad_norms"], strict=True))
    unused = unused_shapes(stepped.config)
    assert not any(norms.pop(name) for name in list(norms) if name in unused)
    assert norms.keys() == stepped.clipped.keys()
    scale = max(stepped.metrics["grad_norm"], OPTIMIZER.clip_norm)
    for name, norm in norms.items():
        np.testing.assert_allclose(scale * stepped.clipped[name].norm, norm, rtol=1e-4, err_msg=name)


def test_global_gradient_norm(stepped):
    np.testing.assert_allclose(stepped.metrics["grad_norm"], stepped.expected["train_grad_global_norm"], rtol=1e-5)


def test_gradient_slices(stepped):
    # The expected values are clipped, because PyTorch clips in place.
    for name, expected in named(stepped, "train_grad:").items():
        assert_close(stepped.clipped[name].slice, expected, 1e-4)


def test_weights_after_a_clipped_step(stepped):
    for name, expected in named(stepped, "train_after:").items():
        gradient = stepped.clipped[name]
        # For smaller gradients Adam's first step has the sign of rounding noise.
        clear = np.abs(gradient.slice) >= 1e-6 * gradient.maximum
        assert clear.mean() > 0.5
        assert_close(stepped.after[name][clear], expected[clear], 1e-4)
