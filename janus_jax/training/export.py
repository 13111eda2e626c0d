"""From a run's checkpoints to a model's folder."""

from pathlib import Path

import jax
from jax.sharding import SingleDeviceSharding

from checkpoints_convert import save_checkpoint
from janus_jax.config import Dtype
from janus_jax.errors import JanusError
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.training.checkpointing import read_config, saved_steps
from janus_jax.training.config_dicts import from_config
from janus_jax.training.init_from import checkpoints_folder, read_stage, tokenizer_folder
from janus_jax.training.param_paths import unbox
from janus_jax.training.recipe import Recipe


def last_stage(workdir: Path) -> int:
    """The last stage with checkpoints.

    Raises:
      JanusError: there is none.
    """
    names = [path.parent.name.removeprefix("stage_") for path in workdir.glob("stage_*/checkpoints")]
    if not (stages := [int(name) for name in names if name.isdecimal()]):
        raise JanusError(f"{workdir} holds no stage's checkpoints; give the workdir of a launch.train.")
    return max(stages)


def export(workdir: Path, stage: int, out: Path, dtype: Dtype, *, progress: bool = False) -> int:
    """Writes a stage's newest parameters as a converted folder.

    They are averaged where the stage keeps an average, and its adapters are merged.

    Args:
      out: the folder to make. It appears when it is complete.
      progress: Whether to show a progress bar on stderr.

    Returns:
      The step that they are of.

    Raises:
      JanusError: there is no whole checkpoint, or the folder cannot be written.
    """
    if out.exists():
        raise JanusError(f"{out} exists; give a folder that does not, or remove it.")
    checkpoints = checkpoints_folder(workdir, stage)
    step = saved_steps(checkpoints)[-1]
    config = from_config(Recipe, read_config(checkpoints)).model_config
    # Where a model has room that no accelerator may have.
    place = SingleDeviceSharding(jax.devices("cpu")[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place), unbox(abstract_params(make_model(config)))
    )
    params = read_stage(workdir, stage, abstract)
    save_checkpoint(out, params, config, sidecars_from=tokenizer_folder(workdir), progress=progress)
    return step
