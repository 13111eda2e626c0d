"""Trains one stage of a recipe, an image tokenizer or an understanding encoder.

    janus-train --config janus_pro_1b --config.stage=1 --workdir runs/janus_pro_1b \\
        --config.sources.understanding.directory=prepared/understanding ...

Every value of the recipe can be set with a flag, such as --config.stages.stage_1.batch_size=64. Checkpoints, metrics
and samples go to WORKDIR/stage_N; recipes of image tokenizers, such as vq_16, and of encoders write to WORKDIR itself.
To continue an interrupted run, repeat the command. See docs/training.md and docs/tokenizer.md. janus-export exports
the model.
"""

from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from janus_jax.commands import cli
from janus_jax.commands.recipe_flag import define_recipe_flag
from janus_jax.distributed import join_cluster
from janus_jax.training.config_dicts import best_match, from_config

_CONFIG = define_recipe_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run, created if missing", required=True)
_DISTRIBUTED = flags.DEFINE_boolean("distributed", False, "train with all processes of the cluster (jax.distributed)")


def main(_: Sequence[str]) -> None:
    """Trains to the last step. The fields of the recipe decide what it trains."""
    from janus_jax.training.image_tokenizer.recipe import VAERecipe, VQRecipe
    from janus_jax.training.image_tokenizer.task import train_tokenizer
    from janus_jax.training.recipe import Recipe
    from janus_jax.training.siglip import SiglipRecipe, train_siglip
    from janus_jax.training.stage import train_stage

    trainers: dict[type, Callable[..., Any]] = {
        Recipe: train_stage,
        VQRecipe: train_tokenizer,
        VAERecipe: train_tokenizer,
        SiglipRecipe: train_siglip,
    }
    kind = best_match(tuple(trainers), _CONFIG.value)
    recipe: Any = from_config(kind, _CONFIG.value)
    if _DISTRIBUTED.value:
        join_cluster()
    cli.enable_compilation_cache()
    trainers[kind](recipe, _WORKDIR.value)


def run() -> None:
    """Runs `janus-train`."""
    cli.run(main, name="janus-train")
