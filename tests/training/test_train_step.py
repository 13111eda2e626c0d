import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.models.backbone import apply
from janus_jax.models.janus import Janus
from janus_jax.sharding import make_mesh
from janus_jax.training.flops import equations
from janus_jax.training.objectives import RngStreams, TokenObjective
from janus_jax.training.param_paths import merge
from janus_jax.training.state import abstract_train_state, random_params, state_from_params
from janus_jax.training.train_step import (
    Microbatching,
    compute_gradients,
    make_evaluation_step,
    make_train_step,
    put_batch,
)
from tests import tiny
from tests.training import batches, stages, toy

NIGHTLY = pytest.mark.nightly


@functools.cache
def two_steps(mesh=None, microbatching=None, kind="janus"):
    """Metrics of two steps, and the first moments after them."""
    state, reports = stages.state(mesh, kind), []
    for _ in range(2):
        state, metrics = stages.step(mesh, microbatching, kind)(state, put_batch(batches.mixed(kind=kind), mesh))
        reports.append({name: float(value) for name, value in metrics.items()})
    assert toy.shardings(state) == toy.shardings(stages.abstract(mesh, kind))
    return reports, jax.tree.map(np.asarray, moments(state))


def moments(state):
    ((_, mu),) = optax.tree.get_all_with_path(state.opt_state, "mu")
    return mu


def assert_close(actual, expected, relative):
    assert np.abs(actual - expected).max() <= relative * np.abs(expected).max() + 1e-7


def assert_same_steps(actual, expected):
    for found, wanted in zip(actual[0], expected[0], strict=True):
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
    jax.tree.map(functools.partial(assert_close, relative=1e-4), actual[1], expected[1])


@NIGHTLY
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("janus", (8, 1, 1)),
        ("janus", (1, 8, 1)),
        ("janus", (2, 2, 2)),
        ("janus", (1, 4, 2)),
        ("flow", (1, 8, 1)),
        ("flow", (2, 2, 2)),
    ],
)
def test_meshes_take_the_same_steps(kind, sizes):
    # Several chunks per head.
    microbatching = dataclasses.replace(stages.MICROBATCHING[kind], logits_chunk=32)
    assert_same_steps(two_steps(make_mesh(*sizes), microbatching, kind=kind), two_steps(kind=kind))


# Eight sequences with unequal numbers of targets, one without any.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "microbatches"),
    [pytest.param("janus", 2, marks=NIGHTLY), ("janus", 4), pytest.param("flow", 4, marks=NIGHTLY)],
)
def test_microbatches_match_the_whole_batch(kind, microbatches):
    microbatching = dataclasses.replace(stages.MICROBATCHING[kind], microbatches=microbatches)
    assert_same_steps(two_steps(microbatching=microbatching, kind=kind), two_steps(kind=kind))


@NIGHTLY
def test_microbatches_on_a_mesh_match_the_whole_batch():
    assert_same_steps(two_steps(make_mesh(2, 1, 2, jax.devices()[:4]), Microbatching(microbatches=2)), two_steps())


def test_task_losses_average_to_the_loss():
    metrics = two_steps()[0][0]
    tasks = ("text", "understanding", "generation")
    counts = [metrics[f"tokens/{task}"] for task in tasks]
    assert all(counts)
    mean = np.average([metrics[f"loss/{task}"] for task in tasks], weights=counts)
    np.testing.assert_allclose(metrics["loss"], mean, rtol=1e-5)
    assert metrics["finite"] == 1


def test_gradient_is_clipped():
    state, metrics = stages.step()(stages.state(), put_batch(batches.mixed(), None))
    assert float(metrics["grad_norm"]) > 1
    # After one step the first moment is a tenth of the gradient.
    np.testing.assert_allclose(float(optax.tree.norm(moments(state))) / 0.1, 1, rtol=1e-4)


@pytest.mark.slow
def test_evaluation_and_training_losses_are_equal():
    totals = make_evaluation_step(stages.OBJECTIVE, Microbatching(), stages.abstract(), None)(
        stages.state(), batches.mixed()
    )
    np.testing.assert_allclose(totals.loss, two_steps()[0][0]["loss"], rtol=1e-5)


def test_non_finite_gradient_changes_only_the_step_number():
    state = stages.state()
    spoiled = jax.tree.map(np.asarray, state.params)
    spoiled["llm"]["norm"]["scale"] = np.full_like(spoiled["llm"]["norm"]["scale"], np.nan)
    state = state_from_params(spoiled, state.frozen, stages.OPTIMIZER, stages.abstract())
    before = jax.tree.map(np.asarray, state)
    after, metrics = stages.step()(state, put_batch(batches.mixed(), None))
    assert float(metrics["finite"]) == 0
    assert int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=before.step), before)


def test_step_donates_the_state():
    state = stages.state()
    stages.step()(state, put_batch(batches.mixed(), None))
    assert state.params["llm"]["head"]["weight"].is_deleted()


@NIGHTLY
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_gradients_match(remat):
    batch = batches.batch([(batches.understanding(1), batches.generation(2))])
    grads = [stages.gradient("III", policy)(batch)[0] for policy in (remat, "none")]
    jax.tree.map(functools.partial(assert_close, relative=1e-4), *grads)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_program_size_does_not_grow_with_depth(remat):
    def operations(depth):
        config = dataclasses.replace(
            tiny.CONFIG,
            llm=dataclasses.replace(tiny.CONFIG.llm, depth=depth),
            und_encoder=dataclasses.replace(tiny.CONFIG.und_encoder, depth=depth),
        )
        objective = TokenObjective(Janus(config, Execution(remat=remat)))
        abstract = abstract_train_state(objective, stages.TRAINED["III"], stages.OPTIMIZER, None)
        lowered = make_train_step(objective, stages.OPTIMIZER, Microbatching(), abstract, None).lower(
            abstract, batches.mixed()
        )
        return lowered.as_text().count("\n")

    assert operations(4) == operations(24)


def test_image_tokens_of_the_step_match_the_tokenizer():
    packed = batches.batch([(batches.generation(1),), (batches.generation(2),)])
    pictures = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), np.uint8)
    rngs = RngStreams(jax.random.key(0), jnp.arange(2))
    made = jax.jit(functools.partial(stages.OBJECTIVE.prepare_targets, rngs=rngs, dtype="float32"))(
        tiny.stacked_params(), packed._replace(gen_images=pictures, gen_ids=None)
    )
    pixels = pictures[1].astype(np.float32) / 127.5 - 1
    tokenize = jax.jit(functools.partial(apply, stages.MODEL.tokenize))
    expected = tokenize(tiny.stacked_params(), pixels)
    assert made.gen_ids.shape == packed.gen_ids.shape
    # Except for near ties.
    assert (np.asarray(made.gen_ids[1]) == np.asarray(expected)).mean() > 0.9


def test_bfloat16_is_used_for_computation_only():
    objective = TokenObjective(Janus(tiny.CONFIG, Execution(dtype="bfloat16")))
    trained, frozen = stages.parts("II")
    frozen = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), frozen)
    function, batch = functools.partial(compute_gradients, objective, Microbatching()), batches.mixed()
    grads, totals = jax.eval_shape(function, trained, frozen, batch)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((grads, totals))} == {"float32"}
    products = [
        equation
        for equation, _ in equations(jax.make_jaxpr(function)(trained, frozen, batch).jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    in_float32 = [e for e in products if any(var.aval.dtype == jnp.float32 for var in e.invars)]
    assert products
    assert not in_float32


@NIGHTLY
def test_random_params_are_initialized_sharded():
    mesh = make_mesh(2, 2, 2)
    state = abstract_train_state(stages.OBJECTIVE, stages.TRAINED["II"], stages.OPTIMIZER, mesh)
    abstract = merge(state.params, state.frozen)
    params = random_params(stages.MODEL, abstract, jax.random.key(0))
    for found, expected in zip(jax.tree.leaves(params), jax.tree.leaves(abstract), strict=True):
        assert (found.shape, found.dtype, found.sharding) == (expected.shape, expected.dtype, expected.sharding)
    assert float(jnp.std(params["llm"]["head"]["weight"])) == pytest.approx(64**-0.5, rel=0.05)


def test_uneven_batch_is_rejected():
    mesh = make_mesh(2, 2, 2)
    Microbatching(microbatches=2).check(16, mesh)
    with pytest.raises(JanusError, match="12 is not a multiple of 8"):
        Microbatching(microbatches=2).check(12, mesh)
