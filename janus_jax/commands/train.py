"""Trains one stage of a recipe.

    janus-train --config janus_pro_1b --config.stage=1 --workdir runs/janus_pro_1b \\
        --config.sources.understanding.directory=prepared/understanding ...

Every number of the config can be set: --config.stages.stage_1.batch_size=64. Figures go to WORKDIR/stage_N/tensorboard
and WORKDIR/stage_N/metrics.jsonl, checkpoints to WORKDIR/stage_N/checkpoints; the same command goes on where it was
interrupted. docs/training.md tells more; janus-export makes a model's folder of what was trained.
"""

from collections.abc import Sequence

from absl import flags

from janus_jax.commands import cli
from janus_jax.commands.recipe_flag import define_recipe_flag
from janus_jax.distributed import join_cluster
from janus_jax.training.config_dicts import from_config

_CONFIG = define_recipe_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of all stages of the run; made if need be", required=True)
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "train together with the processes of a cluster, as jax.distributed finds them"
)


def main(_: Sequence[str]) -> None:
    """Trains to the stage's last step."""
    values = _CONFIG.value
    if _DISTRIBUTED.value:
        join_cluster()
    cli.enable_compilation_cache()
    if "stages" in values:
        from janus_jax.training.recipe import Recipe
        from janus_jax.training.stage import train_stage

        train_stage(from_config(Recipe, values), _WORKDIR.value)
        return

    from janus_jax.training.image_tokenizer.recipe import VAERecipe, VQRecipe
    from janus_jax.training.image_tokenizer.task import train_tokenizer

    recipe = from_config(VQRecipe, values) if "codebook" in values else from_config(VAERecipe, values)
    train_tokenizer(recipe, _WORKDIR.value)


def run() -> None:
    """Runs `janus-train`."""
    cli.run(main, name="janus-train")
