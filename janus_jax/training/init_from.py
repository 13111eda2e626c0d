"""Initial parameters of a stage that has no checkpoint yet.

They come from the previous stage in the workdir, from the folder of a whole model, or from the folders of an LLM, a
SigLIP and an image tokenizer or VAE.

    WORKDIR/tokenizer/              files of the tokenizer and the processor
    WORKDIR/stage_N/checkpoints/    checkpoints of stage N
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from checkpoints_convert import Checkpoint, open_checkpoint
from checkpoints_convert.hub import local_path
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.sidecars import copy_sidecars
from janus_jax.buckets import as_path, bucket_errors, is_remote
from janus_jax.config import ModelConfig
from janus_jax.errors import JanusError, RunStopped
from janus_jax.models.backbone import Params
from janus_jax.models.factory import abstract_params, params_from_leaves
from janus_jax.training.checkpoint_files import SavedCheckpoint, absolute_path, finished_steps, read_run, saved_steps
from janus_jax.training.config_dicts import from_config
from janus_jax.training.lora import ADAPTER_NAMES, init_adapters, merge_adapters, split_adapters
from janus_jax.training.losses.rectified_flow import ALIGNER
from janus_jax.training.param_paths import merge, partition, unbox
from janus_jax.training.recipe import Recipe
from janus_jax.training.rl.objective import REFERENCE
from janus_jax.training.setup import StageSetup
from janus_jax.training.state import TrainState, random_params, state_from_params

_WHOLE_MODEL = "model"
_log = logging.getLogger(__name__)


def checkpoints_folder(workdir: str | Path, stage: int) -> Path:
    """Returns the folder of a stage's checkpoints."""
    return as_path(workdir) / f"stage_{stage}" / "checkpoints"


def tokenizer_folder(workdir: str | Path) -> Path:
    """Returns the folder in which a run keeps its tokenizer for later stages and exports."""
    return as_path(workdir) / "tokenizer"


def find_tokenizer(recipe: Recipe, workdir: str | Path) -> Path:
    """Finds the folder of `tokenizer.json`: the folder in the recipe, the workdir, or the initial checkpoint.

    Raises:
      JanusError: None of these folders has a tokenizer.
    """
    if recipe.tokenizer:
        return local_path(recipe.tokenizer, weights=False)
    folders = recipe.current.initialisation.folders(recipe.model_config)
    initial = [folders[name] for name in ("model", "llm") if name in folders]
    candidates: list[str | Path] = [tokenizer_folder(workdir), *initial]
    for path in candidates:
        # A relative workdir looks like a model id of the hub, but is always a folder.
        is_folder = isinstance(path, Path) or is_remote(path)
        folder = as_path(path) if is_folder else local_path(path, weights=False)
        with bucket_errors(folder):
            if (folder / "tokenizer.json").exists():
                return folder
    raise JanusError("config.tokenizer is empty, and no initial checkpoint has a tokenizer; set it to a folder.")


def copy_tokenizer(source: Path, workdir: str | Path) -> None:
    """Copies the files of a tokenizer to the workdir, in the first process."""
    target = tokenizer_folder(workdir)
    if source.absolute() != target.absolute() and jax.process_index() == 0:
        copy_sidecars(source, target)


class OpenedStage(NamedTuple):
    """A recipe with a model, and the opened checkpoints that its stage starts from.

    Attributes:
      recipe: The recipe, with the model that was found.
      checkpoints: Checkpoints that the stage starts from, by the name of their field in `Initialisation`; empty for the
        sources "stage" and "random", and for resumed runs.
      is_resumed: Whether the run resumes from its own checkpoint.
    """

    recipe: Recipe
    checkpoints: Mapping[str, Checkpoint]
    is_resumed: bool = False


def open_initialisation(recipe: Recipe, workdir: str | Path | None, *, is_new: bool = False) -> OpenedStage:
    """Finds the model of a stage, and opens the checkpoints that it starts from without reading their parameters.

    If the recipe names no model, the stage trains the model in `initialisation.model`, or that of the previous stage. A
    resumed run keeps its model and dtypes, and needs no initial checkpoints.

    Args:
      recipe: The recipe.
      workdir: Workdir of the run. None: only finds the model, and opens no folder but `initialisation.model`.
      is_new: Ignores checkpoints of the stage itself.

    Raises:
      JanusError: No model is named, a folder is missing or holds another model, or the previous stage is not finished.
    """
    saved = None if workdir is None or is_new else _saved_recipe(checkpoints_folder(workdir, recipe.stage))
    if saved is not None:
        precision = recipe.current.precision.replace_auto(saved.current.precision)
        return OpenedStage(_with_model(recipe, saved).replace_current(precision=precision), {}, is_resumed=True)
    start, where = recipe.current.initialisation, f"config.stages.stage_{recipe.stage}.initialisation"
    opened: dict[str, Checkpoint] = {}
    if workdir is None and (recipe.model or recipe.architecture is not None):
        return OpenedStage(recipe, opened)
    if start.source == "model" and start.model:
        opened[_WHOLE_MODEL] = open_checkpoint(start.model)
        recipe = _with_model(recipe, opened[_WHOLE_MODEL].model_config)
    elif start.source == "stage" and workdir is not None:
        _check_previous_stage(recipe, workdir, where)
        if (saved := _saved_recipe(checkpoints_folder(workdir, recipe.stage - 1))) is not None:
            recipe = _with_model(recipe, saved)
    elif start.source == "stage" and recipe.stage > 1:
        previous = open_initialisation(replace(recipe, stage=recipe.stage - 1), None).recipe
        recipe = _with_model(recipe, previous)
    config = recipe.model_config
    if workdir is None:
        return OpenedStage(recipe, opened)
    start.check(where, config)
    opened |= {name: open_checkpoint(path) for name, path in start.folders(config).items() if name not in opened}
    for name, checkpoint in opened.items():
        checkpoint.check_unquantized(f"{where}.{name}")
        _check_model(f"{where}.{name}", checkpoint, name, config)
    return OpenedStage(recipe, opened)


def _with_model(recipe: Recipe, other: Recipe | ModelConfig) -> Recipe:
    """Returns the recipe. If it names no model, it gets the model of `other`."""
    if recipe.model or recipe.architecture is not None:
        return recipe
    if isinstance(other, Recipe):
        return replace(recipe, model=other.model, architecture=other.architecture)
    return replace(recipe, architecture=other)


def _saved_recipe(checkpoints: Path) -> Recipe | None:
    """Returns the recipe in the newest readable checkpoint of a stage; None if there is none."""
    for step in reversed(finished_steps(checkpoints)):
        try:
            return from_config(Recipe, read_run(absolute_path(checkpoints) / str(step))["config"])
        except RunStopped:
            raise
        # The trainer reports a damaged checkpoint. Its reader raises errors of many types.
        except Exception as error:
            _log.debug("The recipe of %s/%s cannot be read: %s", checkpoints, step, error)
    return None


def initial_state(
    recipe: Recipe, workdir: str | Path, setup: StageSetup, opened: Mapping[str, Checkpoint]
) -> TrainState:
    """Initializes the state before the first step, sharded.

    A host holds the stacked blocks of only one parameter at a time. Other arrays are read directly to their devices.

    Args:
      recipe: The recipe.
      workdir: Workdir of the run.
      setup: Model, optimizer and state shapes of the current stage.
      opened: Checkpoints from `open_initialisation`.

    Raises:
      JanusError: A checkpoint cannot be read.
    """
    start, abstract = recipe.current.initialisation, setup.abstract
    model_frozen = {part: tree for part, tree in abstract.frozen.items() if part != REFERENCE}
    shapes, adapter_shapes = split_adapters(merge(abstract.params, model_frozen))
    key = jax.random.key(recipe.seed)
    if start.source == "stage":
        params = read_stage(SavedCheckpoint.newest(checkpoints_folder(workdir, recipe.stage - 1)), shapes)
    else:
        params = {}
        for name, checkpoint in opened.items():
            parts = shapes if name == _WHOLE_MODEL else {name: shapes[name]}
            # Checkpoints of models do not have parts that only training uses.
            parts = {part: tree for part, tree in parts.items() if part != ALIGNER}
            params |= params_from_leaves(checkpoint.params(parts=tuple(parts)), parts, recipe.model_config)
        missing = {part: tree for part, tree in shapes.items() if part not in params}
        params |= random_params(setup.objective.model, missing, key) if missing else {}
        if start.image_tokens_from_codebook:
            params |= _image_tokens_from_codebook(params, shapes, key)
    if adapter_shapes:
        params = merge(params, _random_adapters(recipe, setup, adapter_shapes, key))
    values = flatten_dict(params)

    def select(part: Params) -> Params:
        return unflatten_dict({name: values[name] for name in flatten_dict(part)})

    frozen = select(model_frozen)
    if REFERENCE in abstract.frozen:
        # Copies, because a step donates the trained parameters.
        frozen[REFERENCE] = jax.tree.map(jnp.copy, select(abstract.frozen[REFERENCE]))
    return state_from_params(select(abstract.params), frozen, setup.optimizer, abstract)


def read_stage(saved: SavedCheckpoint, shapes: Params) -> Params:
    """Reads the model that a stage trained, with adapters merged, from the moving average if there is one.

    Args:
      saved: Checkpoint of the stage.
      shapes: Shapes, dtypes and shardings of the model's parameters.

    Raises:
      JanusError: The checkpoint is of another model, or cannot be read.
    """
    wanted: dict[tuple[str, ...], Any] = flatten_dict(shapes)
    for path, shape in saved.shapes(ADAPTER_NAMES).items():
        # Adapters are small enough to be replicated. Their matrices stay in float32 until the sum is computed.
        weight = wanted[*path[:-1], "weight"]
        replicated = weight.sharding
        if isinstance(replicated, NamedSharding):
            replicated = NamedSharding(replicated.mesh, PartitionSpec())
        wanted[path] = jax.ShapeDtypeStruct(shape, np.float32, sharding=replicated)
        wanted[*path[:-1], "weight"] = weight.update(dtype=np.float32)
    params = merge_adapters(saved.params(unflatten_dict(wanted), average=True))
    return jax.tree.map(lambda array, to: array.astype(to.dtype, copy=False), params, shapes)


def _check_previous_stage(recipe: Recipe, workdir: str | Path, where: str) -> None:
    previous = recipe.stage - 1
    if not previous:
        raise JanusError(f"{where}.source is 'stage', but stage 1 has no previous stage; use parts, model or random.")
    folder = checkpoints_folder(workdir, previous)
    if not finished_steps(folder):
        raise JanusError(
            f"{where}.source is 'stage', but {folder} has no checkpoint; run --config.stage={previous} in {workdir} "
            f"first."
        )
    step, last_step = saved_steps(folder)[-1], recipe.stages[previous - 1].last_step
    if step < last_step:
        raise JanusError(
            f"Stage {previous} in {workdir} is at step {step} of {last_step}; finish it, or accept that step with "
            f"--config.stages.stage_{previous}.stop_at={step}."
        )


def _check_model(where: str, checkpoint: Checkpoint, name: str, config: ModelConfig) -> None:
    found: Any = checkpoint.config
    wanted = config if name == _WHOLE_MODEL else getattr(config, name)
    if isinstance(found, ModelConfig) and name != _WHOLE_MODEL:
        found = getattr(found, name)
    if type(found) is not type(wanted):
        raise JanusError(
            f"{where} is {checkpoint.path}, which holds a {type(found).__name__}; a {type(wanted).__name__} is needed."
        )
    # Only shapes are compared: a tokenizer accepts images of any size, and the GELU of SigLIP and Janus differs.
    saved, needed = ({leaf.path: leaf.full_shape for leaf in model_parameters(one)} for one in (found, wanted))
    for path in sorted(saved | needed):
        if saved.get(path) != needed.get(path):
            shapes = [f"has shape {list(one[path])}" if path in one else "is absent" for one in (saved, needed)]
            raise JanusError(
                f"{where} is {checkpoint.path}, a model of another size: {path} {shapes[0]} there and {shapes[1]} in "
                f"the config; give another folder, or leave config.model and config.architecture empty to train the "
                f"model of a whole folder."
            )


def _random_adapters(recipe: Recipe, setup: StageSetup, shapes: Params, key: Key[Array, ""]) -> Params:
    """Initializes the adapters of a stage, sharded."""

    def make(key: Key[Array, ""]) -> Params:
        params = abstract_params(setup.objective.model)
        _, frozen = partition(params, recipe.current.trained)
        return unbox(merge(*init_adapters(recipe.current.lora, params, frozen, key)))

    adapters: Params = jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes))(key)
    return adapters


def _image_tokens_from_codebook(params: Params, shapes: Params, key: Key[Array, ""]) -> Params:
    """Initializes `gen_embed` and the last layer of `gen_head` from the codebook of the image tokenizer.

    The embedding of a token is its code, centered and with variance 1. Its row of the head is a random projection of
    the embedding. Similar codes therefore share what the model learns about one of
    them, such as the color that a prompt asks for.
    """
    table, head = shapes["gen_embed"]["embedding"], shapes["gen_head"]["fc2"]["weight"]

    def make(codebook: Array, key: Key[Array, ""]) -> tuple[Array, Array]:
        codes = codebook.astype(np.float32)
        codes /= jnp.linalg.norm(codes, axis=1, keepdims=True)
        codes = (codes - codes.mean(0)) / codes.std()
        rows = codes @ jax.random.normal(key, (codes.shape[1], head.shape[1]))
        return codes.astype(table.dtype), (rows / (rows.std() * head.shape[1] ** 0.5)).astype(head.dtype)

    embedding, weight = jax.jit(make, out_shardings=(table.sharding, head.sharding))(
        params["gen_encoder"]["codebook"]["embedding"], key
    )
    layers = params["gen_head"]
    return {"gen_embed": {"embedding": embedding}, "gen_head": layers | {"fc2": layers["fc2"] | {"weight": weight}}}
