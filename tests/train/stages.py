"""The tiny model in the papers' three stages, each compiled once."""

import functools

import jax

from janus_jax.config import Execution
from janus_jax.models.janus import Janus
from janus_jax.train.optimizers import OptimizerConfig, make_optimizer
from janus_jax.train.partition import partition
from janus_jax.train.recipe import ADAPTORS_AND_HEAD, ALL_BUT_ENCODERS, ALL_BUT_TOKENIZER
from janus_jax.train.state import adopted_state
from janus_jax.train.step import Cut, abstract_train_state, gradients, train_step
from tests import tiny

MODEL = Janus(tiny.CONFIG, Execution())
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-3, weight_decay=0.1), total_steps=10)
TRAINED = {"I": ADAPTORS_AND_HEAD, "II": ALL_BUT_ENCODERS, "III": ALL_BUT_TOKENIZER}


@functools.cache
def parts(stage):
    """Trained and frozen parameters."""
    return partition(tiny.stacked_params(), TRAINED[stage])


@functools.cache
def gradient(stage, remat="none"):
    """From a batch to the gradient and the totals of a stage."""
    model = Janus(tiny.CONFIG, Execution(remat=remat))
    return jax.jit(functools.partial(gradients, model, Cut(), *parts(stage)))


@functools.cache
def abstract(mesh=None):
    """Of stage II."""
    return abstract_train_state(MODEL, TRAINED["II"], OPTIMIZER, mesh, frozen_dtype="float32")


@functools.cache
def step(mesh=None, cut=Cut()):  # noqa: B008
    """The training step of stage II."""
    return train_step(MODEL, OPTIMIZER, cut, abstract(mesh), mesh)


def state(mesh=None):
    """A new one of stage II."""
    return adopted_state(*parts("II"), OPTIMIZER, abstract(mesh))
