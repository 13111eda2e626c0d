"""Trains one stage of a recipe, or an image tokenizer.

    janus-train --config janus_pro_1b --config.stage=1 --workdir runs/janus_pro_1b \\
        --config.sources.understanding.directory=prepared/understanding ...

Every number of the config can be set: --config.stages.stage_1.batch_size=64. Figures go to WORKDIR/stage_N/tensorboard
and WORKDIR/stage_N/metrics.jsonl, checkpoints to WORKDIR/stage_N/checkpoints; the same command goes on where it was
interrupted. Image tokenizer recipes such as vq_16 write to WORKDIR itself (docs/tokenizer.md). docs/training.md tells
more; janus-export makes a model's folder of what was trained.
"""

from collections.abc import Sequence
from typing import Any

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
    """Trains one stage, or an image tokenizer."""
    from janus_jax.training.image_tokenizer.recipe import VAERecipe, VQRecipe
    from janus_jax.training.image_tokenizer.task import train_tokenizer
    from janus_jax.training.recipe import Recipe
    from janus_jax.training.stage import train_stage

    values = _CONFIG.value
    kind: Any = Recipe if "stages" in values else VQRecipe if "codebook" in values else VAERecipe
    recipe = from_config(kind, values)
    if _DISTRIBUTED.value:
        join_cluster()
    cli.enable_compilation_cache()
    train: Any = train_stage if kind is Recipe else train_tokenizer
    train(recipe, _WORKDIR.value)


def run() -> None:
    """Runs `janus-train`."""
    cli.run(main, name="janus-train")
