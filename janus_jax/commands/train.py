"""Trains one stage of a recipe.

    janus-train --config janus_pro_1b --config.stage=1 --workdir runs/janus_pro_1b \\
        --config.sources.understanding.directory=prepared/understanding ...

Every value of the recipe is a flag, such as --config.stages.stage_1.batch_size=64. Checkpoints, metrics and samples go
to WORKDIR/stage_N. Repeat the command to continue an interrupted run. docs/training.md describes recipes and options;
janus-export exports the trained model.
"""

from collections.abc import Sequence

from absl import flags

from janus_jax.commands import cli
from janus_jax.commands.recipe_flag import define_recipe_flag
from janus_jax.distributed import join_cluster
from janus_jax.training.config_dicts import from_config

_CONFIG = define_recipe_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run, created if missing", required=True)
_DISTRIBUTED = flags.DEFINE_boolean("distributed", False, "train with all processes of the cluster (jax.distributed)")


def main(_: Sequence[str]) -> None:
    """Trains to the last step."""
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
