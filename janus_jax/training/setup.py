"""Assembles a training stage: objective, optimizer, state shapes and compiled step, in this order."""

from typing import NamedTuple

import optax
from jax.sharding import Mesh

from janus_jax.models.factory import abstract_params
from janus_jax.sharding import check_mesh
from janus_jax.training.objectives import Objective, make_objective
from janus_jax.training.optimizers import make_optimizer
from janus_jax.training.param_paths import partition
from janus_jax.training.recipe import Recipe
from janus_jax.training.rl.objective import make_policy_objective
from janus_jax.training.stage_config import concrete
from janus_jax.training.state import TrainState, abstract_train_state
from janus_jax.training.train_step import CompiledStep, make_train_step


class StageSetup(NamedTuple):
    """A stage that is ready to run. No array is on a device yet.

    Attributes:
      objective: Model and loss.
      optimizer: Optimizer of the trained parameters.
      abstract: Shapes, dtypes and shardings of the state.
      step: The training step, compiled when first called.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    abstract: TrainState
    step: CompiledStep


def set_up_stage(recipe: Recipe, mesh: Mesh | None) -> StageSetup:
    """Assembles the current stage of a recipe.

    Args:
      recipe: The recipe, with dtypes for the platform of the mesh (`Recipe.on_platform`).
      mesh: Mesh. Its devices need not be attached. None for the default device.

    Raises:
      JanusError: The model or the batch cannot be divided over the mesh, or a pattern of trained parameters matches
        nothing.
    """
    stage = recipe.current
    if mesh is not None:
        check_mesh(recipe.model_config, mesh)
    objective: Objective
    if stage.rl is None:
        recipe.microbatching.check(stage.batch_size, mesh)
        objective, updates = make_objective(recipe.model_config, recipe.execution, recipe.flow), 1
    else:
        recipe.microbatching.check(stage.batch_size // stage.rl.minibatches, mesh)
        objective, updates = make_policy_objective(recipe.model_config, recipe.execution, stage.rl), stage.rl.updates
    trained, _ = partition(abstract_params(objective.model), stage.trained)
    optimizer = make_optimizer(stage.optimizer, stage.steps * updates, trained)
    abstract = abstract_train_state(
        objective,
        stage.trained,
        optimizer,
        mesh,
        frozen_dtype=concrete(stage.precision.frozen),
        ema=stage.ema_decay > 0,
        lora=stage.lora,
        reference=stage.rl is not None and stage.rl.loss.beta > 0,
    )
    step = make_train_step(
        objective, optimizer, recipe.microbatching, abstract, mesh, ema_decay=stage.ema_decay, seed=recipe.seed
    )
    return StageSetup(objective, optimizer, abstract, step)
