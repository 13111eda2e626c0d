import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from janus_jax.sharding import make_mesh, use_mesh
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.param_paths import unbox
from janus_jax.training.state import abstract_state, state_from_params
from tests.training import toy


@pytest.mark.parametrize("muon", [None, 1e-2], ids=["adamw", "muon"])
def test_state_is_initialized_sharded_with_moments_like_params(muon):
    config = OptimizerConfig(1e-2, muon_learning_rate=muon)

    def make(seed):
        return toy.make(seed, config, ema=True)

    abstract = abstract_state(make, make_mesh(2, 2, 2), 0)
    state = toy.init_sharded(make, abstract, 0)
    assert toy.shardings(state) == toy.shardings(abstract)
    weight = PartitionSpec(None, "tensor", "fsdp")
    fc = state.params["layers"]["fc"]
    assert (fc["weight"].sharding.spec, fc["bias"].sharding.spec) == (weight, PartitionSpec(None, "tensor"))
    assert state.ema["layers"]["fc"]["weight"].sharding.spec == weight
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (3, 16, 8)]
    assert len(moments) == (1 if muon else 2)
    assert {leaf.sharding.spec for leaf in moments} == {weight}


@pytest.mark.slow
@pytest.mark.parametrize("muon", [None, 1e-2], ids=["adamw", "muon"])
def test_mesh_matches_one_device(muon):
    # With Adam's default eps the sign of an update near zero is rounding noise.
    config = OptimizerConfig(1e-2, eps=1e-2, muon_learning_rate=muon)
    optimizer = toy.optimizer(config)

    def make(seed):
        return toy.make(seed, config)

    def train(mesh):
        with use_mesh(mesh):
            state = toy.init_sharded(make, abstract_state(make, mesh, 0), 0)
            step = jax.jit(lambda state: toy.step(state, 0, optimizer), donate_argnums=0)
            for _ in range(3):
                state = step(state)
        return jax.device_get(state)

    expected, found = train(None), train(make_mesh(2, 2, 2))
    assert found.step == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found.params, expected.params)


def test_state_from_params_matches_initialized_state():
    mesh = make_mesh(1, 4, 2)

    def make(seed):
        return toy.make(seed, ema=True)

    abstract = abstract_state(make, mesh, 0)
    initialized = toy.init_sharded(make, abstract, 0)
    read = jax.tree.map(np.asarray, (initialized.params, initialized.frozen))
    created = state_from_params(*read, toy.optimizer(), abstract)
    jax.tree.map(np.testing.assert_array_equal, created, initialized)
    assert toy.shardings(created) == toy.shardings(abstract)


def test_average_follows_the_params():
    state = jax.jit(lambda: unbox(toy.make(0, ema=True)))()
    after = jax.jit(toy.step, static_argnums=1, static_argnames="ema_decay")(state, 0, ema_decay=0.75)
    start, end, average = (jax.tree.leaves(tree)[0] for tree in (state.params, after.params, after.ema))
    assert not np.allclose(start, end)
    np.testing.assert_allclose(average, 0.75 * start + 0.25 * end, rtol=1e-5)
