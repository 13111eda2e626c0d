"""Rectified-flow loss of JanusFlow."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from janus_jax.config import Execution
from janus_jax.data.pipeline.packing import Budget
from janus_jax.errors import JanusError
from janus_jax.generation.image_sampler import make_image_sampler
from janus_jax.models.backbone import apply
from janus_jax.models.factory import abstract_params
from janus_jax.models.llama import Llama
from janus_jax.training.losses.rectified_flow import (
    FlowLossConfig,
    FlowTargets,
    prepare_flow_targets,
    sample_times_and_noise,
)
from janus_jax.training.objectives import make_objective
from janus_jax.training.param_paths import merge, partition
from janus_jax.training.train_step import compute_gradients
from tests import tiny
from tests.training import batches, stages

FLOW_LOSS, OBJECTIVE, params = stages.FLOW_LOSS, stages.OBJECTIVES["flow"], functools.partial(stages.params, "flow")
MODEL = OBJECTIVE.model
TRAINED, MICROBATCHING = stages.FLOW_TRAINED, stages.MICROBATCHING["flow"]
text, understanding, generation = (
    functools.partial(make, config=tiny.FLOW) for make in (batches.text, batches.understanding, batches.generation)
)


def batch():
    """Two sequences, the second with a padding image."""
    return batches.flow_batch([[generation(2), generation(3)], [understanding(), generation(4), text()]])


@functools.cache
def gradient():
    grads, totals = jax.jit(functools.partial(compute_gradients, OBJECTIVE, MICROBATCHING))(
        *partition(params(), TRAINED["III"]), batch()
    )
    return jax.tree.map(np.asarray, grads), totals


@functools.cache
def prepared_targets():
    key, indices = jax.random.key(0), np.arange(2)
    prepare_targets = jax.jit(functools.partial(prepare_flow_targets, MODEL, dtype="float32"))
    return prepare_targets(params(), batch(), key=key, indices=indices)


@pytest.mark.slow
def test_loss_matches_numpy():
    interpolated, velocities, features = prepared_targets()

    @jax.jit
    def read(params):
        states, aligned = apply(MODEL.states_and_aligned, params, interpolated)
        return states.hidden, aligned, apply(MODEL.velocities, params, interpolated, states)

    hidden, aligned, predicted = (np.asarray(one) for one in read(params()))
    is_image = interpolated.gen_starts >= 0
    velocity = np.mean((predicted - velocities)[is_image] ** 2)
    x, y = aligned[is_image], np.asarray(features)[is_image]
    cosines = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    logits = hidden @ params()["llm"]["head"]["weight"].T
    log_p = np.asarray(jax.nn.log_softmax(logits))
    targets, tokens = np.asarray(interpolated.text_targets), np.asarray(interpolated.tokens)
    sequence, column = np.nonzero(targets >= 0)
    position = targets[sequence, column]
    nll = -log_p[sequence, position - 1, tokens[sequence, position]]
    totals = gradient()[1]
    _, _, generation, alignment = np.asarray(totals.term_means)
    np.testing.assert_allclose(generation, velocity, rtol=1e-4)
    np.testing.assert_allclose(alignment, -cosines.mean(), rtol=1e-4)
    np.testing.assert_allclose(totals.loss, np.mean(nll) + velocity - 0.5 * cosines.mean(), rtol=1e-4)


def test_latents_are_interpolated_along_the_velocity():
    interpolated, velocities, _ = prepared_targets()
    pixels = batch()
    latents = jax.jit(lambda p: apply(MODEL.target_latents, p, pixels).values)(params())
    t = np.asarray(interpolated.gen_times)[..., None, None, None]
    np.testing.assert_allclose(interpolated.gen_latents + (1 - t) * velocities, latents, atol=1e-4)


def test_gradient_is_finite_and_reaches_all_parts_of_stage_three():
    grads, _ = gradient()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    moved = {part for part, tree in grads.items() if any(np.any(leaf) for leaf in jax.tree.leaves(tree))}
    assert moved == set(params()) - {"vae"}


def loss_and_gradient(prepared_targets):
    """Loss sums and gradient of prepared targets."""

    def loss(trained, frozen, prepared_targets):
        scales = OBJECTIVE.terms.scales(OBJECTIVE.target_counts(prepared_targets.batch))
        loss = OBJECTIVE.loss(merge(trained, frozen), prepared_targets, scales, MICROBATCHING.logits_chunk)
        return loss.value, loss.sums

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, totals), grads = compiled(*partition(params(), TRAINED["III"]), prepared_targets)
    # The reported loss is the differentiated one.
    np.testing.assert_allclose(value, totals.loss, rtol=1e-5)
    return totals, grads


@pytest.mark.nightly
def test_packed_examples_have_the_gradients_of_separate_ones():
    samples, budget = [generation(2), understanding(), generation(3), text()], Budget(320, 1, 2, 96)
    prepare_targets = jax.jit(functools.partial(prepare_flow_targets, MODEL, dtype="float32"))
    packed = prepare_targets(
        params(), batches.flow_batch([samples], budget), key=jax.random.key(5), indices=np.arange(1)
    )
    alone = batches.flow_batch([[sample] for sample in samples], budget)

    def to_own_sequence(images):
        """Moves each image of the packed sequence to a sequence of its own."""
        separate = np.zeros((4, *images.shape[1:]), np.float32)
        separate[0, 0], separate[2, 0] = images[0]
        return separate

    unpacked = FlowTargets(
        alone._replace(
            gen_latents=to_own_sequence(packed.batch.gen_latents),
            gen_times=to_own_sequence(packed.batch.gen_times),
            gen_images=alone.gen_images[:, :0],
        ),
        to_own_sequence(packed.velocities),
        to_own_sequence(packed.features),
    )
    (totals, grads), (expected, expected_grads) = loss_and_gradient(packed), loss_and_gradient(unpacked)
    np.testing.assert_array_equal(totals.counts, expected.counts)
    np.testing.assert_allclose(totals.losses, expected.losses, rtol=1e-4)
    for actual, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(actual, wanted, atol=2e-5 + 1e-4 * np.abs(wanted).max())


def test_times_and_noise_depend_on_the_sequence_index_only():
    key, shape = jax.random.key(3), (2, 4, 4, 1)
    whole = sample_times_and_noise(FLOW_LOSS, key, np.arange(4), shape)
    part = sample_times_and_noise(FLOW_LOSS, key, np.array([1, 3]), shape)
    for actual, wanted in zip(part, whole, strict=True):
        np.testing.assert_array_equal(actual, np.asarray(wanted)[[1, 3]])


def test_times_are_logit_normal():
    config = FlowLossConfig(time_mean=-0.5, time_std=0.8)
    times, _ = sample_times_and_noise(config, jax.random.key(0), np.arange(2000), (1, 1, 1, 1))
    logits = np.log(times / (1 - times))
    np.testing.assert_allclose((logits.mean(), logits.std()), (-0.5, 0.8), atol=0.06)


def test_later_blocks_on_captured_states_give_the_last_states():
    config, execution = tiny.FLOW.llm, Execution()
    llm, ones = params()["llm"], np.ones((1, 8), np.int32)
    x = np.random.default_rng(0).standard_normal((1, 8, config.width), np.float32)
    positions = np.arange(8)[None]
    capturing = Llama(config, execution, capture_block=2)
    hidden, captured_states = capturing.apply({"params": llm}, x, positions, ones, method=capturing.call_and_capture)
    expected, _ = Llama(config, execution).apply({"params": llm}, x, positions, ones)
    np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=1e-5)
    rest = jax.tree.map(lambda leaf: leaf[2:], llm["layers"])
    shorter = Llama(type(config)(**{**vars(config), "depth": config.depth - 2}), execution)
    from_captured, _ = shorter.apply({"params": llm | {"layers": rest}}, captured_states, positions, ones)
    np.testing.assert_allclose(from_captured, hidden, rtol=1e-4, atol=1e-4)


def test_zero_align_weight_removes_the_aligner():
    objective = make_objective(tiny.FLOW, Execution(), FlowLossConfig(align_weight=0.0))
    assert "aligner" not in abstract_params(objective.model)
    assert float(objective.target_counts(batch())[-1]) == 0


def test_align_block_beyond_depth_is_rejected():
    with pytest.raises(JanusError, match="align_block is 6"):
        make_objective(tiny.FLOW, Execution())


def test_model_without_vae_is_rejected():
    without_vae = dataclasses.replace(tiny.FLOW, vae=None)
    with pytest.raises(JanusError, match="tiny_flow has no VAE"):
        make_objective(without_vae, Execution(), FLOW_LOSS)
    with pytest.raises(JanusError, match="tiny_flow has no VAE"):
        make_image_sampler(without_vae)
