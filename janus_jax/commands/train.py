"""Trains one stage of a recipe.

    python -m launch.train --config configs/janus_pro_1b.py --config.stage=1 --workdir runs/janus_pro_1b \\
        --config.sources.understanding.directory=prepared/understanding ...

Every number of the config can be set: --config.stages.stage_1.batch_size=64. Figures go to WORKDIR/stage_N/tensorboard
and WORKDIR/stage_N/metrics.jsonl, checkpoints to WORKDIR/stage_N/checkpoints; the same command goes on where it was
interrupted. docs/training.md tells more; launch.export makes a model's folder of what was trained.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from janus_jax.commands import cli
from janus_jax.commands.config_flag import read_config
from janus_jax.training.config_dicts import from_config

_CONFIG = config_flags.DEFINE_config_file("config", None, "file of the recipe, such as configs/janus_pro_1b.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of all stages of the run; made if need be", required=True)
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "train together with the processes of a cluster, as jax.distributed finds them"
)
flags.mark_flag_as_required("config")


def main(_: Sequence[str]) -> None:
    """Trains to the stage's last step."""
    values = read_config(_CONFIG, "configs/janus_pro_1b.py")

    from janus_jax.training.recipe import Recipe
    from janus_jax.training.stage import train_stage

    recipe = from_config(Recipe, values)
    if _DISTRIBUTED.value:
        cli.join_cluster()
    cli.enable_compilation_cache()
    train_stage(recipe, _WORKDIR.value)
