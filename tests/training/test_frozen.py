"""Frozen parameters cost no gradient, no moments and no float32 copy."""

import functools

import jax
import numpy as np
import pytest

from checkpoints_convert.parameters import model_parameters
from janus_jax.config import PRESETS
from janus_jax.errors import JanusError
from janus_jax.models.janus import Janus
from janus_jax.sharding import make_mesh
from janus_jax.training.flops import traced_flops
from janus_jax.training.objectives import RngStreams, TokenObjective
from janus_jax.training.state import abstract_train_state
from janus_jax.training.train_step import Microbatching, compute_gradients
from tests import tiny
from tests.training import batches, stages

NIGHTLY = pytest.mark.nightly
RNGS = RngStreams(jax.random.key(0), jax.numpy.arange(1))

# Parts with a gradient for a batch of one example of a task.
MOVED = {
    "text": {"llm"},
    "understanding": {"llm", "und_adaptor", "und_encoder"},
    "generation": {"llm", "gen_embed", "gen_adaptor", "gen_head"},
}


@pytest.mark.parametrize("task", MOVED)
@pytest.mark.parametrize("stage", ["I", pytest.param("II", marks=NIGHTLY), "III"])
def test_gradients_reach_exactly_the_trained_parts_of_a_task(stage, task):
    grads, _ = stages.gradient(stage)(batches.batch([(getattr(batches, task)(),)]))
    trained, _ = stages.parts(stage)
    assert jax.tree.structure(grads) == jax.tree.structure(trained)
    moved = {part for part, tree in grads.items() if any(np.any(leaf) for leaf in jax.tree.leaves(tree))}
    assert moved == MOVED[task] & set(trained)


@pytest.mark.parametrize("stage", stages.TRAINED)
def test_frozen_params_have_no_float32_copy_or_moments(stage):
    state = abstract_train_state(stages.OBJECTIVE, stages.TRAINED[stage], stages.OPTIMIZER, None)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.frozen)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_training_the_image_tokenizer_is_rejected():
    with pytest.raises(JanusError, match="image tokenizer"):
        abstract_train_state(stages.OBJECTIVE, ["*"], stages.OPTIMIZER, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["janus_pro_1b", "janus_pro_7b"])
def test_mesh_shards_the_state_of_a_released_model(name):
    config = PRESETS[name]
    state = abstract_train_state(
        TokenObjective(Janus(config)), stages.TRAINED["III"], stages.OPTIMIZER, make_mesh(1, 4, 2)
    )

    def held(tree):
        return sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))

    frozen = sum(parameter.size for parameter in model_parameters(config.gen_encoder))
    trained = sum(parameter.size for parameter in model_parameters(config)) - frozen
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == trained
    # All but the last matrix of the image head are split eight ways; the tokenizer is replicated.
    assert held((state.params, state.opt_state)) < 1.1 * 3 * trained / 8
    assert held(state.frozen) == frozen


def gradient_flops(stage, batch):
    return traced_flops(
        functools.partial(compute_gradients, stages.OBJECTIVE, Microbatching()), *stages.parts(stage), batch
    )


@pytest.fixture(scope="module")
def batch():
    return batches.batch([(batches.understanding(1), batches.generation(2))])


def test_frozen_encoder_has_no_backward_pass(batch):
    images = batch.und_images.reshape(-1, *batch.und_images.shape[2:]).astype(np.float32)
    forward = traced_flops(
        lambda: stages.MODEL.apply({"params": tiny.stacked_params()}, images, method=lambda m, x: m.und_encoder(x))
    )
    # Backward costs twice the forward pass, without the gradient of the pixels, with that of the adaptor's input.
    c = tiny.CONFIG.und_encoder
    patches = len(images) * c.num_patches
    of_pixels, of_features = 2 * patches * 3 * c.patch_size**2 * c.width, 2 * patches * c.width * tiny.CONFIG.llm.width
    spared = gradient_flops("III", batch) - gradient_flops("II", batch)
    assert spared == 2 * forward - of_pixels + of_features


def test_frozen_transformer_has_no_weight_gradients(batch):
    llm, num_tokens = tiny.CONFIG.llm, batch.tokens.size
    matrices = [one.size for one in model_parameters(llm) if one.path.startswith("llm/layers") and len(one.shape) > 1]
    in_layers = num_tokens * sum(matrices)
    in_head = batch.text_targets.size * llm.vocab_size * llm.width
    assert gradient_flops("II", batch) - gradient_flops("I", batch) == 2 * (in_layers + in_head)


def test_image_tokenizer_has_no_backward_pass(batch):
    side = tiny.CONFIG.gen_encoder.image_size
    pictures = np.zeros((*batch.gen_ids.shape[:2], side, side, 3), np.uint8)
    with_images = batch._replace(gen_images=pictures, gen_ids=None)
    tokenize = traced_flops(
        lambda: stages.OBJECTIVE.prepare_targets(tiny.stacked_params(), with_images, RNGS, "bfloat16").gen_ids
    )
    assert gradient_flops("III", with_images) - gradient_flops("III", batch) == tokenize > 0
