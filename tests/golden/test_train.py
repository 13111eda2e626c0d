"""Compares losses, gradients and one optimizer step with the PyTorch implementation in float32.

The two golden examples give the same values if each has its own sequence, if both are packed into one sequence, and if
the sequences are sharded over a mesh.
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


class GoldenModel:
    """The model of a golden set, and its training examples."""

    def __init__(self):
        self.files = golden_set("janus", "janus_small")
        file = self.files.path / "train.npz"
        if not file.is_file():
            pytest.skip(f"{self.files.path} holds no training values")
        with np.load(file) as values:
            self.expected = {name: values[name] for name in values.files}
        self.config = config_from_json(JsonObject(self.files.config, "config.json"), self.files.shapes)
        self.model = Janus(self.config, Execution())
        # Copies, because the training step donates its input.
        self.params = jax.tree.map(np.array, self.files.params(LAYOUT, self.config, self.model.execution))

    def tensors(self, tree):
        """Yields names and values of the released tensors that a (partial) parameter tree holds."""
        for unit in LAYOUT.map(model_parameters(self.config)):
            node = tree
            for key in unit.parameter.keys:
                node = node.get(key) if isinstance(node, dict) else None
            if node is not None:
                yield from unit.write(np.asarray(node) if unit.layer is None else np.asarray(node[unit.layer]))

    def examples(self):
        """Returns both examples as (tokens, und_patch_index, gen_token_index, text_targets, gen_start)."""
        placeholder = int(self.files.expected["special_ids"][-1])
        und = self.expected["train_und_ids"]
        is_image = und == placeholder
        und_patch_index = np.where(is_image, np.cumsum(is_image) - 1, NO_IMAGE)
        targets = np.arange(int(self.expected["train_und_supervised_from"]), len(und))
        prompt, codes = self.expected["train_gen_prompt"], self.expected["train_gen_codes"]
        gen = np.concatenate([prompt, np.full(len(codes), placeholder, np.int32)])
        gen_token_index = np.concatenate([np.full(len(prompt), NO_IMAGE), np.arange(len(codes))])
        return (
            (und, und_patch_index, np.full(len(und), NO_IMAGE), targets, NO_POSITION),
            (gen, np.full(len(gen), NO_IMAGE), gen_token_index, np.array([]), len(prompt)),
        )

    def batch(self, sequences, length):
        """Returns a batch of packed sequences, given the examples of each sequence."""
        size = self.config.und_encoder.image_size
        codes = self.expected["train_gen_codes"]
        image = prepare_understanding(open_image(self.files.images[0]), size)
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
        for row, examples in enumerate(sequences):
            at = 0
            for segment, (ids, und_patch_index, gen_token_index, targets, start) in enumerate(examples, 1):
                part = np.s_[row, at : at + len(ids)]
                batch.tokens[part], batch.segment_ids[part] = ids, segment
                batch.positions[part] = np.arange(len(ids))
                batch.und_patch_index[part], batch.gen_token_index[part] = und_patch_index, gen_token_index
                batch.text_targets[row, : len(targets)] = targets + at if len(targets) else NO_POSITION
                if (und_patch_index != NO_IMAGE).any():
                    batch.und_images[row, 0] = image
                if start != NO_POSITION:
                    batch.gen_starts[row, 0], batch.gen_ids[row, 0] = start + at, codes
                at += len(ids)
        return batch


TRAINED = ("und_encoder/*", "und_adaptor/*", "gen_embed/*", "gen_adaptor/*", "gen_head/*", "llm/*")
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1)


class TrainedStep:
    """The results of one training step, with released tensor names."""

    def __init__(self, golden, sequences, length, mesh=None):
        self.expected, config = golden.expected, golden.config
        objective, optimizer = TokenObjective(golden.model), make_optimizer(OPTIMIZER, total_steps=1)
        abstract = abstract_train_state(objective, TRAINED, optimizer, mesh)
        state = state_from_params(*partition(golden.params, TRAINED), optimizer, abstract)
        # The chunk size divides neither 16 nor 576, so that chunks contain padding.
        step = make_train_step(objective, optimizer, Microbatching(logits_chunk=100), abstract, mesh)
        state, metrics = step(state, put_batch(golden.batch(sequences, length), mesh))
        self.metrics = {name: float(value) for name, value in metrics.items()}
        self.after = dict(golden.tensors(jax.tree.map(np.asarray, state.params)))
        # Adam's first moment after one step is the clipped gradient times 1 - b1.
        (mu,) = optax.tree.get_all_with_path(state.opt_state, "mu")
        clipped = jax.tree.map(lambda moment: np.asarray(moment) / (1 - OPTIMIZER.b1), mu[1])
        self.clipped = dict(golden.tensors(clipped))
        self.config = config


@pytest.fixture(scope="module")
def golden():
    return GoldenModel()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("two sequences", marks=pytest.mark.slow),
        "one sequence on a mesh",
        pytest.param("one sequence", marks=pytest.mark.slow),
        pytest.param("two sequences on a mesh", marks=pytest.mark.slow),
    ],
)
def step(request, golden):
    und, gen = golden.examples()
    match request.param:
        case "two sequences":
            return TrainedStep(golden, [[und], [gen]], 640)
        case "one sequence":
            return TrainedStep(golden, [[und, gen]], 1216)
        case "one sequence on a mesh":
            return TrainedStep(golden, [[gen, und]], 1216, make_mesh(1, 1, 2, jax.devices()[:2]))
        case "two sequences on a mesh":
            return TrainedStep(golden, [[], [gen], [], [und]], 640, make_mesh(2, 2, 2))


def strided(array):
    return array[::4] if array.ndim == 1 else array[::16, ::8]


def named(step, prefix):
    return {name.removeprefix(prefix): value for name, value in step.expected.items() if name.startswith(prefix)}


def test_losses(step):
    sums = [step.metrics[f"loss/{task}"] * step.metrics[f"tokens/{task}"] for task in ("understanding", "generation")]
    expected = step.expected
    np.testing.assert_allclose(sums, [expected["train_text_loss_sum"], expected["train_image_loss_sum"]], rtol=1e-5)
    np.testing.assert_allclose(step.metrics["loss"], expected["train_loss"], rtol=1e-5)


def test_target_counts(step):
    counts = [step.metrics[f"tokens/{task}"] for task in ("text", "understanding", "generation")]
    assert counts == [0, *step.expected["train_counts"]]


def test_gradient_norm_of_every_tensor(step):
    norms = dict(zip(step.expected["train_grad_names"], step.expected["train_grad_norms"], strict=True))
    unused = unused_shapes(step.config)
    assert not any(norms.pop(name) for name in list(norms) if name in unused)
    assert norms.keys() == step.clipped.keys()
    scale = max(step.metrics["grad_norm"], OPTIMIZER.clip_norm)
    actual = {name: scale * np.linalg.norm(step.clipped[name].astype(np.float64)) for name in norms}
    for name, norm in norms.items():
        np.testing.assert_allclose(actual[name], norm, rtol=1e-4, err_msg=name)


def test_global_gradient_norm(step):
    np.testing.assert_allclose(step.metrics["grad_norm"], step.expected["train_grad_global_norm"], rtol=1e-5)


def test_gradient_slices(step):
    # The golden gradients are clipped, because PyTorch clips in place.
    for name, expected in named(step, "train_grad:").items():
        assert_close(strided(step.clipped[name]), expected, 1e-4)


def test_weights_after_a_clipped_step(step):
    for name, expected in named(step, "train_after:").items():
        gradient = np.abs(strided(step.clipped[name]))
        # For smaller gradients, Adam's first step is the sign of rounding errors.
        clear = gradient >= 1e-6 * np.abs(step.clipped[name]).max()
        assert clear.mean() > 0.5
        assert_close(strided(step.after[name])[clear], expected[clear], 1e-4)
