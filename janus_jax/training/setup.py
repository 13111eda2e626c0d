"""What a recipe's stage runs on a mesh: the model, its optimizer, the state's shapes and the step."""

from typing import NamedTuple

import optax
from jax.sharding import Mesh

from janus_jax.models.backbone import Backbone
from janus_jax.models.factory import abstract_params
from janus_jax.sharding import check_mesh
from janus_jax.training.objectives import training_model
from janus_jax.training.optimizers import make_optimizer
from janus_jax.training.param_paths import partition
from janus_jax.training.recipe import Recipe
from janus_jax.training.state import TrainState
from janus_jax.training.train_step import Step, abstract_train_state, make_train_step


class StageSetup(NamedTuple):
    """A stage ready to run; nothing of it is on a device yet.

    Attributes:
      model: as it is trained.
      optimizer: of the trained part.
      abstract: shapes, dtypes and shardings of the state.
      step: not compiled yet.
    """

    model: Backbone
    optimizer: optax.GradientTransformation
    abstract: TrainState
    step: Step


def set_up_stage(recipe: Recipe, mesh: Mesh | None) -> StageSetup:
    """The recipe's current stage on a mesh, whose devices need not be here; None is one device that is.

    Raises:
      JanusError: the mesh divides the model or the batch unevenly, or what the stage trains is not there.
    """
    stage = recipe.current
    if mesh is not None:
        check_mesh(recipe.model_config, mesh)
    recipe.microbatching.check(stage.batch_size, mesh)
    model = training_model(recipe.model_config, recipe.execution, recipe.flow)
    optimizer = make_optimizer(stage.optimizer, stage.steps, partition(abstract_params(model), stage.trained)[0])
    abstract = abstract_train_state(
        model,
        stage.trained,
        optimizer,
        mesh,
        frozen_dtype=stage.precision.frozen,
        ema=stage.ema_decay > 0,
        lora=stage.lora,
    )
    step = make_train_step(model, optimizer, recipe.microbatching, abstract, mesh, stage.ema_decay, recipe.seed)
    return StageSetup(model, optimizer, abstract, step)
