"""Exports the model that a run trained."""

from pathlib import Path

import jax
from jax.sharding import SingleDeviceSharding

from checkpoints_convert import save_checkpoint
from janus_jax.config import Dtype
from janus_jax.errors import JanusError
from janus_jax.files import reading
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.training.checkpoint_files import SavedCheckpoint
from janus_jax.training.config_dicts import from_config
from janus_jax.training.init_from import checkpoints_folder, read_stage, tokenizer_folder
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
    config = from_config(Recipe, saved.config).model_config
    # In host memory, because the model may not fit on one accelerator.
    cpu = SingleDeviceSharding(jax.devices("cpu")[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=cpu), unbox(abstract_params(make_model(config)))
    )
    params = read_stage(saved, shapes)
    save_checkpoint(out, params, config, sidecars_from=tokenizer_folder(workdir), progress=progress)
    return saved.step
