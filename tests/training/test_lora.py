"""LoRA: initialization, training of adapters only, merging and export."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import janus_jax
from checkpoints_convert import open_checkpoint
from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.models.backbone import apply
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.models.janus import Janus
from janus_jax.sharding import make_mesh
from janus_jax.training.export import export, export_adapter
from janus_jax.training.flops import traced_flops
from janus_jax.training.init_from import initial_state, open_initialisation
from janus_jax.training.lora import Lora, init_adapters, merge_adapters, split_adapters
from janus_jax.training.losses.tokens import token_loss
from janus_jax.training.optimizers import OptimizerConfig, make_optimizer
from janus_jax.training.param_paths import merge, partition, unbox
from janus_jax.training.setup import set_up_stage
from janus_jax.training.state import abstract_train_state, state_from_params
from janus_jax.training.train_step import (
    Microbatching,
    compute_gradients,
    make_train_step,
    put_batch,
)
from tests import tiny
from tests.training import batches, runs, stages, toy

RANK = 4
EVERYWHERE = Lora(RANK, 8.0, ("llm/layers/*/weight",))
ATTENTION = Lora(RANK, 8.0)
# Muon is enabled, but adapters are not matrices for it.
MUON = OptimizerConfig(learning_rate=3e-3, weight_decay=0.1, muon_learning_rate=1e-2)
OPTIMIZER = make_optimizer(MUON, 20, partition(abstract_params(make_model(tiny.CONFIG)), ())[0])


@functools.cache
def started(lora):
    """Trained and frozen parameters as numpy arrays, which no step can donate."""
    trained, frozen = partition(tiny.stacked_params(), ())
    adapters, scales = init_adapters(lora, abstract_params(make_model(tiny.CONFIG)), frozen, jax.random.key(1))
    return jax.tree.map(np.asarray, (merge(trained, unbox(adapters)), merge(frozen, unbox(scales))))


@functools.cache
def trained_by(mesh=None):
    """Losses of four steps, and the state after them."""
    abstract = abstract_train_state(stages.OBJECTIVE, (), OPTIMIZER, mesh, frozen_dtype="float32", lora=EVERYWHERE)
    step = make_train_step(stages.OBJECTIVE, OPTIMIZER, Microbatching(), abstract, mesh)
    state = state_from_params(*started(EVERYWHERE), OPTIMIZER, abstract)
    batch, losses = put_batch(batches.mixed(), mesh), []
    for _ in range(4):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, jax.tree.map(np.asarray, state)


def first_moments(state):
    return [leaf for _, tree in optax.tree.get_all_with_path(state.opt_state, "mu") for leaf in jax.tree.leaves(tree)]


@jax.jit
def totals(params, batch):
    return token_loss(stages.MODEL, params, batch, jnp.ones(3), 512).sums


@pytest.mark.slow
def test_adapted_model_starts_as_the_model():
    batch = batches.mixed()
    found, expected = totals(merge(*started(EVERYWHERE)), batch), totals(tiny.stacked_params(), batch)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_is_random_and_b_is_zero():
    for name, leaf in flatten_dict(started(EVERYWHERE)[0], sep="/").items():
        if name.endswith("lora_b"):
            assert not leaf.any()
        else:
            assert leaf.std() == pytest.approx(leaf[0, 0].size ** -0.5, rel=0.15)


def test_only_adapters_are_trained_and_have_moments():
    state = abstract_train_state(stages.OBJECTIVE, (), OPTIMIZER, None, ema=True, lora=ATTENTION)
    names = set(flatten_dict(state.params, sep="/"))
    assert names == {f"llm/layers/attn/{one}/lora_{ab}" for one in ("q", "k", "v", "out") for ab in "ab"}
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1) == 2 * size
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.ema))} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.frozen)} == {"bfloat16"}
    assert set(flatten_dict(split_adapters(state.frozen)[0])) == set(flatten_dict(tiny.stacked_params()))


def test_frozen_matrices_have_no_gradient_computation():
    batch = batches.mixed()

    def cost(trained, frozen):
        return traced_flops(
            functools.partial(compute_gradients, stages.OBJECTIVE, Microbatching()), trained, frozen, batch
        )

    llm = tiny.CONFIG.llm
    # The same backward pass through the network, for one scale in its first layer.
    backward = cost(*partition(tiny.stacked_params(), ("llm/layers/attn_norm/scale",)))
    heads, kv = llm.num_heads * llm.head_dim, llm.num_kv_heads * llm.head_dim
    numbers = RANK * (4 * llm.width + 2 * heads + 2 * kv) * llm.depth
    # Forward, gradient of the input, gradient of A and B.
    assert cost(*started(ATTENTION)) - backward == 3 * 2 * batch.tokens.size * numbers


@pytest.mark.slow
def test_training_lowers_the_loss_and_changes_only_adapters():
    losses, state = trained_by()
    assert losses[-1] < losses[0] - 0.1
    jax.tree.map(np.testing.assert_array_equal, state.frozen, started(EVERYWHERE)[1])
    for leaf, before in zip(jax.tree.leaves(state.params), jax.tree.leaves(started(EVERYWHERE)[0]), strict=True):
        assert (leaf != before).mean() > 0.9


@pytest.mark.nightly
def test_mesh_matches_one_device():
    (expected, one), (found, four) = trained_by(), trained_by(make_mesh(1, 2, 2, jax.devices()[:4]))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for moment, expected in zip(first_moments(four), first_moments(one), strict=True):
        np.testing.assert_allclose(moment, expected, atol=1e-3 * np.abs(expected).max())


def test_adapters_are_sharded_like_their_matrices():
    mesh = make_mesh(1, 2, 2, jax.devices()[:4])
    state = abstract_train_state(stages.OBJECTIVE, (), OPTIMIZER, mesh, lora=EVERYWHERE)
    layers = state.params["llm"]["layers"]

    def specs(name):
        part, matrix = name.split("/")
        return [tuple(layers[part][matrix][f"lora_{ab}"].sharding.spec) for ab in "ab"]

    assert specs("attn/q") == [(None, None, "fsdp"), (None, "tensor", None, None)]
    assert specs("attn/out") == [(None, None, "tensor", None), (None, "fsdp", None)]
    assert specs("mlp/down") == [(None, None, "tensor"), (None, "fsdp", None)]


def test_merged_model_equals_the_adapted_one():
    batch, adapted = batches.mixed(), merge(trained_by()[1].params, trained_by()[1].frozen)
    merged = merge_adapters(jax.tree.map(jax.numpy.array, adapted))
    assert jax.tree.structure(merged) == jax.tree.structure(tiny.stacked_params())
    found, expected, base = (totals(params, batch).losses for params in (merged, adapted, tiny.stacked_params()))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.abs(expected / base - 1).max() > 1e-3


@pytest.mark.parametrize(
    ("lora", "trained", "words"),
    [
        (Lora(4, targets=("llm/attn/*",)), (), r"lora\.targets has 'llm/attn/\*', .* llm/layers/attn/q/weight"),
        (Lora(4, targets=("llm/head/weight",)), (), r"'llm/head/weight', which matches no matrix"),
        (Lora(4, targets=()), (), r"lora\.targets is empty"),
        (Lora(4), ("llm/*",), r"lora\.targets matches llm/layers/attn/k/weight, which `trained` matches too"),
    ],
)
def test_invalid_targets_are_rejected(lora, trained, words):
    with pytest.raises(JanusError, match=words):
        abstract_train_state(stages.OBJECTIVE, trained, OPTIMIZER, None, lora=lora)


# A training stage with adapters and fully trained adaptors.


def adapted_recipe(stage=1, **fields):
    return runs.recipe(stage, lora=EVERYWHERE, trained=("und_adaptor/*",), ema_decay=0.5, **fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("adapted")
    return workdir, runs.run(adapted_recipe(), workdir)


@pytest.fixture(scope="module")
def average(finished):
    """Averaged model at the end of the stage, with separate adapters."""
    return jax.tree.map(np.asarray, merge(finished[1].ema, finished[1].frozen))


@pytest.mark.nightly
def test_run_resumes_bit_for_bit(finished, tmp_path):
    workdir, state = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "stage_1" / "checkpoints" / str(runs.STEPS))
    again = runs.run(adapted_recipe(), tmp_path / "run")
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.slow
def test_exported_model_equals_the_trained_one(finished, average, tmp_path):
    export(finished[0], 1, tmp_path / "model", "float32")
    loaded = janus_jax.load(tmp_path / "model", dtype="float32")
    batch = loaded.processor.left_pad([loaded.processor.understanding_sequence(batches.QUESTION, [tiny.picture(0)])])

    @functools.partial(jax.jit, static_argnums=0)
    def logits(model, params):
        return apply(model.text_logits, params, apply(model.__call__, params, batch))

    found, expected = logits(loaded.model, loaded.params), logits(Janus(runs.MODEL, Execution()), average)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    base = logits(Janus(runs.MODEL, Execution()), tiny.stacked_params())
    assert np.abs(expected - base).max() > 1e-2


def test_adapters_next_to_other_trained_parameters_are_not_exported_alone(finished, tmp_path):
    with pytest.raises(JanusError, match=r"Stage 1 in .* trained und_adaptor/\* too, which an adapter does not hold"):
        export_adapter(finished[0], 1, tmp_path / "adapter")


@pytest.mark.nightly
def test_an_exported_adapter_with_its_base_is_the_exported_model(tmp_path):
    runs.run(runs.recipe(lora=EVERYWHERE, trained=(), ema_decay=0.5), tmp_path / "run")
    assert export_adapter(tmp_path / "run", 1, tmp_path / "adapter") == runs.STEPS
    export(tmp_path / "run", 1, tmp_path / "model", "float32")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    merged, adapted = open_checkpoint(tmp_path / "model"), open_checkpoint(tmp_path / "adapter")
    assert adapted.adapter is not None
    for (keys, layer, expected), (_, _, found) in zip(merged.params("float32"), adapted.params("float32"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=f"{keys} {layer}")


@pytest.mark.parametrize("mesh", [None, make_mesh(1, 2, 2, jax.devices()[:4])], ids=["one device", "a mesh"])
@pytest.mark.nightly
def test_next_stage_starts_from_merged_params(finished, average, mesh):
    recipe = runs.recipe(stage=2)
    setup = set_up_stage(recipe, mesh)
    state = initial_state(recipe, finished[0], setup, open_initialisation(recipe, finished[0]).checkpoints)
    assert toy.shardings(state) == toy.shardings(setup.abstract)
    found = flatten_dict(merge(state.params, state.frozen))
    merged = flatten_dict(merge_adapters(jax.tree.map(jax.numpy.array, average)))
    assert set(found) == set(merged)
    for name, expected in merged.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg="/".join(name))
