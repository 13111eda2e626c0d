"""A run of the toy model, which compiles in a second."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.sharding import use_mesh
from janus_jax.training.array_batches import opened
from janus_jax.training.state import abstract_state
from janus_jax.training.trainer import TrainingTask
from tests.training import toy

STEPS = 8


class Numbers:
    """Batches of token ids that depend on the batch's number. `sleep` is called before each."""

    example_ids = ()

    def __init__(self, sleep=lambda number: None):
        self._number, self._sleep = 0, sleep

    def __next__(self):
        self._number += 1
        self._sleep(self._number)
        return np.random.default_rng(self._number).integers(0, 32, 16)

    def get_state(self):
        return {"number": self._number}

    def set_state(self, state):
        self._number = state["number"]

    def close(self):
        pass


@functools.cache
def _compiled(mesh):
    def step(state, ids):
        def loss(params):
            return toy.loss(params, state.frozen, ids)

        value, gradients = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(gradients, toy.optimizer()), {"loss": value, "finite": jnp.isfinite(value) * 1.0}

    shardings = toy.shardings(abstract_state(toy.make, mesh, 0))
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def task(mesh=None, numbers=Numbers, **fields):
    """The task, with changed fields."""
    abstract = abstract_state(toy.make, mesh, 0)

    def step(state, ids):
        with use_mesh(mesh) if mesh else contextlib.nullcontext():
            return _compiled(mesh)(state, ids)

    settings = {
        "config": {"name": "toy"},
        "abstract_state": abstract,
        "initial_state": lambda data: toy.init_sharded(toy.make, abstract, 0),
        "step": step,
        "mesh": mesh,
        "open_data": lambda start: opened(lambda start: numbers(), start),
        "counts": lambda batch, data: {},
        "last_step": STEPS,
        "save_every": 2,
        "report_every": 1,
    }
    return TrainingTask(**settings | fields)
