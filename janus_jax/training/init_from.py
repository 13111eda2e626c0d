"""How a stage begins that has no checkpoint of its own yet: what its initialisation names is found, checked and read.

WORKDIR/tokenizer/                the tokenizer's and processor's files
WORKDIR/stage_N/checkpoints/      of each stage that was run there
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from checkpoints_convert import open_checkpoint
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.sidecars import copy_sidecars
from janus_jax.config import ModelConfig
from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params
from janus_jax.models.factory import abstract_params, init_params
from janus_jax.training.checkpointing import read_config, read_params, saved_steps
from janus_jax.training.config_dicts import from_config
from janus_jax.training.lora import init_adapters, merge_adapters, split_adapters
from janus_jax.training.losses.rectified_flow import ALIGNER
from janus_jax.training.objectives import training_model
from janus_jax.training.param_paths import merge, partition, unbox
from janus_jax.training.recipe import Recipe
from janus_jax.training.state import TrainState, state_from_params

_WHOLE = "model"


def checkpoints_folder(workdir: str | Path, stage: int) -> Path:
    """Where a stage's checkpoints are."""
    return Path(workdir) / f"stage_{stage}" / "checkpoints"


def tokenizer_folder(workdir: str | Path) -> Path:
    """Where a run keeps its tokenizer, for its later stages and for what is exported."""
    return Path(workdir) / "tokenizer"


def find_tokenizer(recipe: Recipe, workdir: str | Path) -> Path:
    """The folder of the run's `tokenizer.json`: the recipe's, the run's own, or that of what the stage starts from.

    Raises:
      JanusError: none is named, and there is none.
    """
    if recipe.tokenizer:
        return Path(recipe.tokenizer)
    folders = recipe.current.initialisation.folders(recipe.model_config)
    for folder in (tokenizer_folder(workdir), *(Path(folders[name]) for name in ("model", "llm") if name in folders)):
        if (folder / "tokenizer.json").exists():
            return folder
    raise JanusError("config.tokenizer is empty, and nothing that the run starts from has one; name its folder.")


def copy_tokenizer(source: Path, workdir: str | Path) -> None:
    """Copies a tokenizer's files to where the run keeps them; the first process does."""
    target = tokenizer_folder(workdir)
    if source.resolve() != target.resolve() and jax.process_index() == 0:
        target.mkdir(parents=True, exist_ok=True)
        copy_sidecars(source, target)


def check_initialisation(recipe: Recipe, workdir: str | Path) -> None:
    """Refuses an initialisation that is not there, or is of another model, before any number is read.

    Raises:
      JanusError: the sentence names the field or the folder.
    """
    start = recipe.current.initialisation
    where = f"config.stages.stage_{recipe.stage}.initialisation"
    start.check(where, recipe.model_config)
    if start.source == "stage":
        _check_stage_before(recipe, workdir, where)
    for field, folder in start.folders(recipe.model_config).items():
        _check_folder(f"{where}.{field}", folder, field, recipe.model_config)


def initial_state(
    recipe: Recipe, workdir: str | Path, optimizer: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """The state before the stage's first step.

    Of a folder, each host holds the stacked blocks of one part at a time; all else goes to its place at once.

    Args:
      abstract: see `step.abstract_train_state`. Its adapters are drawn from the seed.

    Raises:
      JanusError: see `check_initialisation`; or what is there cannot be read.
    """
    start = recipe.current.initialisation
    places, adapters = split_adapters(merge(abstract.params, abstract.frozen))
    if start.source == "stage":
        params = read_stage(workdir, recipe.stage - 1, places)
    else:
        params = {}
        for field, folder in start.folders(recipe.model_config).items():
            parts = places if field == _WHOLE else {field: places[field]}
            # No folder of a model has what serves training alone.
            parts = {part: tree for part, tree in parts.items() if part != ALIGNER}
            params |= _folder_params(folder, parts)
        missing = {part: tree for part, tree in places.items() if part not in params}
        params |= _random_params(recipe, missing) if missing else {}
        if start.ids_from_codebook:
            params |= _ids_from_codebook(recipe, params, places)
    whole = flatten_dict(merge(params, _new_adapters(recipe, adapters)))

    def alike(part: Params) -> Params:
        return unflatten_dict({name: whole[name] for name in flatten_dict(part)})

    return state_from_params(alike(abstract.params), alike(abstract.frozen), optimizer, abstract)


def read_stage(workdir: str | Path, stage: int, places: Params) -> Params:
    """A stage's newest parameters: averaged where it keeps an average, its adapters merged where it has some.

    Args:
      places: shapes, dtypes and shardings of the model's parameters.

    Raises:
      JanusError: there is no whole checkpoint, or it is of another model.
    """
    folder = checkpoints_folder(workdir, stage)
    recipe = from_config(Recipe, read_config(folder))
    adapters = flatten_dict(jax.eval_shape(lambda: unbox(_drawn(recipe, jax.random.key(0)))))
    wanted: dict[tuple[str, ...], Any] = flatten_dict(places)
    for name, leaf in adapters.items():
        # Adapters are small enough to be whole everywhere. What they are added to is not rounded before the sum.
        weight = wanted[*name[:-1], "weight"]
        everywhere = weight.sharding
        if isinstance(everywhere, NamedSharding):
            everywhere = NamedSharding(everywhere.mesh, PartitionSpec())
        wanted[name] = jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=everywhere)
        wanted[*name[:-1], "weight"] = weight.update(dtype=np.float32)
    params = merge_adapters(read_params(folder, unflatten_dict(wanted), average=True))
    return jax.tree.map(lambda array, place: array.astype(place.dtype, copy=False), params, places)


def _check_stage_before(recipe: Recipe, workdir: str | Path, where: str) -> None:
    before = recipe.stage - 1
    if not before:
        raise JanusError(f"{where}.source is 'stage', and none is before stage 1; take parts, model or random.")
    done, wanted = saved_steps(checkpoints_folder(workdir, before))[-1], recipe.stages[before - 1].last_step
    if done < wanted:
        raise JanusError(
            f"Stage {before} in {workdir} has come to step {done} of {wanted}; run it to its end, or let that be it "
            f"with --config.stages.stage_{before}.stop_at={done}."
        )


def _check_folder(where: str, folder: str, field: str, config: ModelConfig) -> None:
    found: Any = open_checkpoint(folder).config
    wanted = config if field == _WHOLE else getattr(config, field)
    if isinstance(found, ModelConfig) and field != _WHOLE:
        found = getattr(found, field)
    if type(found) is not type(wanted):
        raise JanusError(
            f"{where} names {folder}, whose config is a {type(found).__name__}; a {type(wanted).__name__} is needed."
        )
    # Shapes, and not the configs: a tokenizer reads any size of image, and SigLIP's own GELU is not Janus's.
    there, here = ({leaf.path: leaf.full_shape for leaf in model_parameters(one)} for one in (found, wanted))
    for name in sorted(there | here):
        if there.get(name) != here.get(name):
            shapes = [f"of shape {list(one[name])}" if name in one else "absent" for one in (there, here)]
            raise JanusError(
                f"{where} names {folder}, which is of another size than config's model: {name} is {shapes[0]} there "
                f"and {shapes[1]} here."
            )


def _folder_params(folder: str, places: Params) -> Params:
    """What a folder in any layout has of these parameters, in their places."""
    wanted: Mapping[tuple[str, ...], Any] = flatten_dict(places)
    stacks: dict[tuple[str, ...], np.ndarray] = {}
    found: dict[tuple[str, ...], Array] = {}
    for keys, layer, array in open_checkpoint(folder).params(parts=tuple(places)):
        place = wanted[keys]
        if layer is None:
            found[keys] = _put(array, place)
            continue
        stack = stacks.setdefault(keys, np.empty(place.shape, place.dtype)) if layer == 0 else stacks[keys]
        stack[layer] = array
        if layer == len(stack) - 1:
            found[keys] = _put(stacks.pop(keys), place)
    return unflatten_dict(found)


def _put(array: np.ndarray, place: Any) -> Array:
    array = array.astype(place.dtype, copy=False)
    return jax.make_array_from_callback(place.shape, place.sharding, array.__getitem__)


def _new_adapters(recipe: Recipe, places: Params) -> Params:
    """The adapters that a stage begins with, each array made in its place."""
    if not places:
        return {}
    shardings = jax.tree.map(lambda place: place.sharding, places)
    adapters: Params = jax.jit(lambda key: unbox(_drawn(recipe, key)), out_shardings=shardings)(
        jax.random.key(recipe.seed)
    )
    return adapters


def _drawn(recipe: Recipe, key: Array) -> Params:
    params = abstract_params(training_model(recipe.model_config, recipe.execution, recipe.flow))
    frozen = partition(params, recipe.current.trained)[1]
    return merge(*init_adapters(recipe.current.lora, params, frozen, key))


def _random_params(recipe: Recipe, places: Params) -> Params:
    """Freshly made parameters of these parts of the model, each array made in its place."""
    model = training_model(recipe.model_config, replace(recipe.execution, param_dtype="float32"), recipe.flow)

    def make(key: Array) -> Params:
        params = unbox(init_params(model, key))
        return {part: jax.tree.map(lambda a, to: a.astype(to.dtype), params[part], places[part]) for part in places}

    shardings = jax.tree.map(lambda place: place.sharding, places)
    params: Params = jax.jit(make, out_shardings=shardings)(jax.random.key(recipe.seed))
    return params


def _ids_from_codebook(recipe: Recipe, params: Params, places: Params) -> Params:
    """`gen_embed` and `gen_head` with their tables begun as the image tokenizer's codebook.

    An id is embedded as its vector, centred and of variance 1; its row of the head is a random map of the vector. So
    what is learnt of an id, such as the colour that a prompt must ask for, is learnt of those that look like it.
    """
    table, row = places["gen_embed"]["embedding"], places["gen_head"]["fc2"]["weight"]

    def make(codebook: Array, key: Array) -> tuple[Array, Array]:
        codes = codebook.astype(np.float32)
        codes /= jnp.linalg.norm(codes, axis=1, keepdims=True)
        codes = (codes - codes.mean(0)) / codes.std()
        rows = codes @ jax.random.normal(key, (codes.shape[1], row.shape[1]))
        return codes.astype(table.dtype), (rows / (rows.std() * row.shape[1] ** 0.5)).astype(row.dtype)

    embedding, weight = jax.jit(make, out_shardings=(table.sharding, row.sharding))(
        params["gen_encoder"]["codebook"]["embedding"], jax.random.key(recipe.seed)
    )
    head = params["gen_head"]
    return {"gen_embed": {"embedding": embedding}, "gen_head": head | {"fc2": head["fc2"] | {"weight": weight}}}
