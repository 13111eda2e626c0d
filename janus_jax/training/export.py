"""Exports the model that a run trained."""

from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding

from checkpoints_convert import open_checkpoint, save_checkpoint
from checkpoints_convert.adapter import LowRank, write_adapter
from janus_jax.config import Dtype
from janus_jax.errors import JanusError
from janus_jax.files import reading
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.processing import Task
from janus_jax.storage import atomic_folder
from janus_jax.training.checkpoint_files import SavedCheckpoint
from janus_jax.training.config_dicts import from_config
from janus_jax.training.init_from import checkpoints_folder, read_stage, tokenizer_folder
from janus_jax.training.lora import ADAPTER_NAMES
from janus_jax.training.param_paths import unbox
from janus_jax.training.recipe import Recipe


def last_stage(workdir: Path) -> int:
    """Returns the number of the last stage with checkpoints.

    Raises:
      JanusError: The workdir has no stage.
    """
    with reading(workdir):
        names = [path.parent.name.removeprefix("stage_") for path in workdir.glob("stage_*/checkpoints")]
    if not (stages := [int(name) for name in names if name.isdecimal()]):
        raise JanusError(f"{workdir} has no checkpoints of a stage; give the workdir of janus-train.")
    return max(stages)


def export(workdir: Path, stage: int, out: Path, dtype: Dtype, *, progress: bool = False) -> int:
    """Writes the newest parameters of a stage as a model folder.

    Adapters are merged. If the stage has a moving average, it is written instead of the last parameters.

    Args:
      workdir: Workdir of the run.
      stage: Number of the stage.
      out: Folder to create. It gets this name when it is complete.
      dtype: Dtype of the parameters.
      progress: Whether to show a progress bar on stderr.

    Returns:
      The step of the parameters.

    Raises:
      JanusError: The stage has no undamaged checkpoint, or the folder cannot be written.
    """
    if out.exists():
        raise JanusError(f"{out} exists; give a new folder, or remove it.")
    saved = SavedCheckpoint.newest(checkpoints_folder(workdir, stage))
    recipe = from_config(Recipe, saved.config)
    config = recipe.model_config
    # In host memory, because the model may not fit on one accelerator.
    cpu = SingleDeviceSharding(jax.devices("cpu")[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=cpu), unbox(abstract_params(make_model(config)))
    )
    params = read_stage(saved, shapes)
    # Sampling uses the layout of generated images that training used.
    has_conversations = any(source.task is Task.INTERLEAVED for source in recipe.used_sources.values())
    fields = {"interleaved_features": recipe.current.editing.interleaved_features} if has_conversations else {}
    save_checkpoint(
        out,
        params,
        config,
        sidecars_from=tokenizer_folder(workdir),
        processor_fields=fields,
        progress=progress,
    )
    return saved.step


def export_adapter(workdir: Path, stage: int, out: Path) -> int:
    """Writes the newest adapters of a stage as a LoRA adapter in peft's layout.

    If the stage has a moving average, it is written instead of the last parameters. The modules have the names of the
    base model's layout: those of transformers' Janus, or of the released code.

    Args:
      workdir: Workdir of the run.
      stage: Number of the stage.
      out: Folder to create. It gets this name when it is complete.

    Returns:
      The step of the parameters.

    Raises:
      JanusError: The stage has no undamaged checkpoint or no adapters, trained other parameters too, did not start from
        a model folder or hub id, or the folder cannot be written.
    """
    saved = SavedCheckpoint.newest(checkpoints_folder(workdir, stage))
    settings = from_config(Recipe, saved.config).current
    shapes, where = saved.shapes(ADAPTER_NAMES), f"Stage {stage} in {workdir}"
    if not shapes:
        raise JanusError(f"{where} has no adapters (lora.rank is 0); export the whole model, without --adapter.")
    if settings.trained:
        raise JanusError(
            f"{where} trained {', '.join(settings.trained)} too, which an adapter does not hold; export the whole "
            f"model, without --adapter."
        )
    base = settings.initialisation.model
    if settings.initialisation.source != "model":
        raise JanusError(f"{where} did not start from a published model; export the whole model, without --adapter.")
    opened = open_checkpoint(base)
    if opened.adapter is not None:
        raise JanusError(f"{where} started from the adapter {base}; export the whole model, without --adapter.")
    layout = "transformers" if opened.metadata.get("layout") == "transformers" else "released"
    cpu = SingleDeviceSharding(jax.devices("cpu")[0])
    wanted = {path: jax.ShapeDtypeStruct(shape, np.float32, sharding=cpu) for path, shape in shapes.items()}
    found = flatten_dict(saved.params(unflatten_dict(wanted), average=True))
    arrays = {path: np.asarray(array) for path, array in found.items()}
    matrices = {}
    for module in sorted({path[:-1] for path in arrays}):
        a, b, scales = (arrays[*module, name] for name in ADAPTER_NAMES)
        rank = a.shape[1]
        for layer, scale in enumerate(scales):
            change = LowRank(a[layer].reshape(rank, -1), b[layer].reshape(-1, rank), float(scale))
            matrices["/".join((*module, "weight")), layer] = change
    with atomic_folder(out) as folder:
        # The folder of the base model may be relative to the folder of the run.
        write_adapter(folder, matrices, str(Path(base).resolve()) if Path(base).exists() else base, layout)
    return saved.step
