"""Losses, gradients and one optimizer step against the PyTorch implementation, in float32.

Every form in which the two samples may lie in a batch gives the same numbers: a row each, one row for both, rows
spread over a mesh.
"""

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
from janus_jax.training.setup import abstract_train_state
from janus_jax.training.state import state_from_params
from janus_jax.training.train_step import Microbatching, make_train_step, put_batch
from tests.golden.conftest import assert_close, golden_set


class Golden:
    def __init__(self):
        self.golden = golden_set("janus", "janus_small")
        file = self.golden.path / "train.npz"
        if not file.is_file():
            pytest.skip(f"{self.golden.path} holds no training values")
        with np.load(file) as values:
            self.expected = {name: values[name] for name in values.files}
        self.config = config_from_json(JsonObject(self.golden.config, "config.json"), self.golden.shapes)
        self.model = Janus(self.config, Execution())
        self.params = self._params()

    def _params(self):
        tree, stacks = {}, {}
        for unit in LAYOUT.map(model_parameters(self.config)):
            array = unit.read(self)
            if unit.layer is not None:
                layers = stacks.setdefault(unit.parameter.keys, [])
                layers.append(array)
                if len(layers) < unit.parameter.layers:
                    continue
                array = np.stack(layers)
            node = tree
            for key in unit.parameter.keys[:-1]:
                node = node.setdefault(key, {})
            node[unit.parameter.keys[-1]] = array
        return tree

    def __getitem__(self, name):
        return self.golden.tensor(name)

    def tensors(self, tree):
        """A tree of ours as the released names have it, for the parts that are in it."""
        for unit in LAYOUT.map(model_parameters(self.config)):
            node = tree
            for key in unit.parameter.keys:
                node = node.get(key) if isinstance(node, dict) else None
            if node is not None:
                yield from unit.write(np.asarray(node) if unit.layer is None else np.asarray(node[unit.layer]))

    def samples(self):
        """Both sequences as (ids, und_patch_index, gen_token_index, text targets, generation start)."""
        placeholder = int(self.golden.expected["special_ids"][-1])
        und = self.expected["train_und_ids"]
        is_image = und == placeholder
        und_patch_index = np.where(is_image, np.cumsum(is_image) - 1, NO_IMAGE)
        targets = np.arange(int(self.expected["train_und_supervised_from"]), len(und))
        prompt, codes = self.expected["train_gen_prompt"], self.expected["train_gen_codes"]
        gen = np.concatenate([prompt, np.full(len(codes), placeholder, np.int32)])
        gen_token_index = np.concatenate([np.full(len(prompt), NO_IMAGE), np.arange(len(codes))])
        nowhere = [np.full(len(ids), NO_IMAGE) for ids in (und, gen)]
        return (und, und_patch_index, nowhere[0], targets, NO_POSITION), (
            gen,
            nowhere[1],
            gen_token_index,
            np.array([]),
            len(prompt),
        )

    def batch(self, rows, length):
        """Rows of samples laid end to end; a row may hold none."""
        size = self.config.und_encoder.image_size
        codes = self.expected["train_gen_codes"]
        image = prepare_understanding(open_image(self.golden.images[0]), size)
        shape = (len(rows), length)
        batch = Batch(
            tokens=np.zeros(shape, np.int32),
            segment_ids=np.full(shape, PADDING_SEGMENT, np.int32),
            positions=np.zeros(shape, np.int32),
            und_patch_index=np.full(shape, NO_IMAGE, np.int32),
            gen_token_index=np.full(shape, NO_IMAGE, np.int32),
            und_images=np.zeros((len(rows), 1, size, size, 3), np.uint8),
            gen_images=np.zeros((len(rows), 0, 16, 16, 3), np.uint8),
            text_targets=np.full((len(rows), 16), NO_POSITION, np.int32),
            gen_starts=np.full((len(rows), 1), NO_POSITION, np.int32),
            gen_ids=np.zeros((len(rows), 1, len(codes)), np.int32),
        )
        for row, samples in enumerate(rows):
            at = 0
            for segment, (ids, und_patch_index, gen_token_index, targets, start) in enumerate(samples, 1):
                places = np.s_[row, at : at + len(ids)]
                batch.tokens[places], batch.segment_ids[places] = ids, segment
                batch.positions[places] = np.arange(len(ids))
                batch.und_patch_index[places], batch.gen_token_index[places] = und_patch_index, gen_token_index
                batch.text_targets[row, : len(targets)] = targets + at if len(targets) else NO_POSITION
                if (und_patch_index != NO_IMAGE).any():
                    batch.und_images[row, 0] = image
                if start != NO_POSITION:
                    batch.gen_starts[row, 0], batch.gen_ids[row, 0] = start + at, codes
                at += len(ids)
        return batch


TRAINED = ("und_encoder/*", "und_adaptor/*", "gen_embed/*", "gen_adaptor/*", "gen_head/*", "llm/*")
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1)


class Stepped:
    """One training step of a golden set, its numbers under their released names."""

    def __init__(self, golden, rows, length, mesh=None):
        self.expected, config = golden.expected, golden.config
        objective, optimizer = TokenObjective(golden.model), make_optimizer(OPTIMIZER, total_steps=1)
        abstract = abstract_train_state(objective, TRAINED, optimizer, mesh)
        state = state_from_params(*partition(golden.params, TRAINED), optimizer, abstract)
        # A chunk that divides neither 16 nor 576, so that padding takes part.
        step = make_train_step(objective, optimizer, Microbatching(logits_chunk=100), abstract, mesh)
        state, metrics = step(state, put_batch(golden.batch(rows, length), mesh))
        self.metrics = {name: float(value) for name, value in metrics.items()}
        self.after = dict(golden.tensors(jax.tree.map(np.asarray, state.params)))
        # Adam's first moment after one step is the clipped gradient times 1 - b1.
        (mu,) = optax.tree.get_all_with_path(state.opt_state, "mu")
        clipped = jax.tree.map(lambda moment: np.asarray(moment) / (1 - OPTIMIZER.b1), mu[1])
        self.clipped = dict(golden.tensors(clipped))
        self.config = config


@pytest.fixture(scope="module")
def golden():
    return Golden()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("a row each", marks=pytest.mark.slow),
        "one row, on a mesh",
        pytest.param("one row", marks=pytest.mark.slow),
        pytest.param("a row each, on a mesh", marks=pytest.mark.slow),
    ],
)
def stepped(request, golden):
    und, gen = golden.samples()
    match request.param:
        case "a row each":
            return Stepped(golden, [[und], [gen]], 640)
        case "one row":
            return Stepped(golden, [[und, gen]], 1216)
        case "one row, on a mesh":
            return Stepped(golden, [[gen, und]], 1216, make_mesh(1, 1, 2, jax.devices()[:2]))
        case "a row each, on a mesh":
            return Stepped(golden, [[], [gen], [], [und]], 640, make_mesh(2, 2, 2))


def strided(array):
    return array[::4] if array.ndim == 1 else array[::16, ::8]


def named(stepped, prefix):
    return {name.removeprefix(prefix): value for name, value in stepped.expected.items() if name.startswith(prefix)}


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
    without_use = unused_shapes(stepped.config)
    assert not any(norms.pop(name) for name in list(norms) if name in without_use)
    assert norms.keys() == stepped.clipped.keys()
    scale = max(stepped.metrics["grad_norm"], OPTIMIZER.clip_norm)
    actual = {name: scale * np.linalg.norm(stepped.clipped[name].astype(np.float64)) for name in norms}
    for name, norm in norms.items():
        np.testing.assert_allclose(actual[name], norm, rtol=1e-4, err_msg=name)


def test_global_gradient_norm(stepped):
    np.testing.assert_allclose(stepped.metrics["grad_norm"], stepped.expected["train_grad_global_norm"], rtol=1e-5)


def test_gradient_slices(stepped):
    # They were written after the clip, which PyTorch does in place.
    for name, expected in named(stepped, "train_grad:").items():
        assert_close(strided(stepped.clipped[name]), expected, 1e-4)


def test_weights_after_a_clipped_step(stepped):
    for name, expected in named(stepped, "train_after:").items():
        gradient = np.abs(strided(stepped.clipped[name]))
        # Below, Adam's first step is the sign of rounding noise.
        clear = gradient >= 1e-6 * np.abs(stepped.clipped[name]).max()
        assert clear.mean() > 0.5
        assert_close(strided(stepped.after[name])[clear], expected[clear], 1e-4)
