"""The tiny models in the three stages of the papers, each compiled once."""

import functools

import flax.linen as nn
import jax
import numpy as np

from janus_jax.config import Execution, ModelConfig
from janus_jax.models.factory import abstract_params
from janus_jax.models.janus import Janus
from janus_jax.training.losses.rectified_flow import ALIGNER, FlowLossConfig
from janus_jax.training.objectives import TokenObjective, make_objective
from janus_jax.training.optimizers import OptimizerConfig, make_optimizer
from janus_jax.training.param_paths import partition
from janus_jax.training.state import abstract_train_state, state_from_params
from janus_jax.training.train_step import Microbatching, compute_gradients, make_train_step
from janus_jax.training.trained_params import (
    ADAPTORS_AND_HEAD,
    ALL_BUT_ENCODERS,
    ALL_BUT_TOKENIZER,
    FLOW_ALL_BUT_ENCODER,
    FLOW_ALL_BUT_VAE,
    LINEAR_LAYERS_AND_FLOW,
)
from tests import tiny

FLOW_LOSS = FlowLossConfig(align_block=2, align_width=32, align_weight=0.5)
CONFIGS: dict[str, ModelConfig] = {"janus": tiny.CONFIG, "flow": tiny.FLOW}
OBJECTIVES = {kind: make_objective(config, Execution(), FLOW_LOSS) for kind, config in CONFIGS.items()}
MODELS = {kind: objective.model for kind, objective in OBJECTIVES.items()}
MICROBATCHING = {"janus": Microbatching(), "flow": Microbatching(tokenizer_dtype="float32")}
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-3, weight_decay=0.1), total_steps=10)
TRAINED = {"I": ADAPTORS_AND_HEAD, "II": ALL_BUT_ENCODERS, "III": ALL_BUT_TOKENIZER}
FLOW_TRAINED = {"I": LINEAR_LAYERS_AND_FLOW, "II": FLOW_ALL_BUT_ENCODER, "III": FLOW_ALL_BUT_VAE}

OBJECTIVE, MODEL = OBJECTIVES["janus"], MODELS["janus"]


@functools.cache
def params(kind="janus"):
    """All parameters of a model, including those that only training uses."""
    tree = tiny.stacked_params(CONFIGS[kind])
    if kind == "janus":
        return tree
    rng = np.random.default_rng(1)
    shapes = nn.unbox(abstract_params(MODELS[kind]))[ALIGNER]
    return tree | {ALIGNER: jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)}


@functools.cache
def parts(stage, kind="janus"):
    """Trained and frozen parameters."""
    return partition(params(kind), _trained(kind)[stage])


@functools.cache
def gradient(stage, remat="none"):
    """Compiled function from a batch to gradient and loss sums of a stage."""
    objective = TokenObjective(Janus(tiny.CONFIG, Execution(remat=remat)))
    return jax.jit(functools.partial(compute_gradients, objective, Microbatching(), *parts(stage)))


@functools.cache
def abstract(mesh=None, kind="janus"):
    """Abstract state of stage II."""
    return abstract_train_state(OBJECTIVES[kind], _trained(kind)["II"], OPTIMIZER, mesh, frozen_dtype="float32")


@functools.cache
def step(mesh=None, microbatching=None, kind="janus"):
    """The training step of stage II."""
    return make_train_step(
        OBJECTIVES[kind], OPTIMIZER, microbatching or MICROBATCHING[kind], abstract(mesh, kind), mesh
    )


def state(mesh=None, kind="janus"):
    """New state of stage II."""
    return state_from_params(*parts("II", kind), OPTIMIZER, abstract(mesh, kind))


def _trained(kind):
    return FLOW_TRAINED if kind == "flow" else TRAINED
