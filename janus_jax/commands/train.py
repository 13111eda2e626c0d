"""Trains one stage of a recipe, an image tokenizer or an understanding encoder.

    janus-train --config janus_pro_1b --config.stage=1 --workdir runs/janus_pro_1b \\
        --config.sources.understanding.directory=prepared/understanding ...

Every value of the recipe can be set with a flag, such as --config.stages.stage_1.batch_size=64; --print_config lists
them. Checkpoints, metrics and samples go to WORKDIR/stage_N; recipes of image tokenizers, such as vq_16, and of
encoders write to WORKDIR itself. To continue an interrupted run, repeat the command. See docs/training.md and
docs/tokenizer.md. janus-export exports the model.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from janus_jax.buckets import as_path, check_bucket
from janus_jax.commands import cli
from janus_jax.commands.recipe_flag import define_recipe_flag, overridden_fields, recipe_class
from janus_jax.distributed import join_cluster
from janus_jax.errors import ExitCode
from janus_jax.training.config_dicts import from_config

if TYPE_CHECKING:
    from janus_jax.training.replay import Incident
    from janus_jax.training.trainer import TrainingTask

_CONFIG = define_recipe_flag()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder of the run, created if missing; gs:// for a bucket", required=True
)
_DISTRIBUTED = flags.DEFINE_boolean("distributed", False, "train with all processes of the cluster (jax.distributed)")


def main(_: Sequence[str]) -> None:
    """Trains to the last step. The recipe's fields select a stage, an image tokenizer or an encoder."""
    from janus_jax.training.goodput import count_from_process_start
    from janus_jax.training.image_tokenizer.task import train_tokenizer
    from janus_jax.training.recipe import Recipe
    from janus_jax.training.siglip import SiglipRecipe, train_siglip
    from janus_jax.training.stage import train_stage
    from janus_jax.training.unused_fields import check_unused_fields
    from janus_jax.training.watchdog import sharing_errors

    count_from_process_start()
    recipe = from_config(recipe_class(_CONFIG.value), _CONFIG.value)
    check_bucket(as_path(_WORKDIR.value))
    if _DISTRIBUTED.value:
        join_cluster()
    cli.enable_compilation_cache(_compilation_cache(recipe))
    with sharing_errors():
        if isinstance(recipe, Recipe):
            train_stage(recipe, _WORKDIR.value, given=overridden_fields())
        else:
            check_unused_fields(recipe, overridden_fields())
            (train_siglip if isinstance(recipe, SiglipRecipe) else train_tokenizer)(recipe, _WORKDIR.value)


def _compilation_cache(recipe: object) -> Path | None:
    """Returns the folder for compiled programs in the workdir, or None for the user's."""
    where = getattr(getattr(recipe, "resources", None), "compilation_cache", "auto")
    if where == "auto":
        where = "workdir" if _DISTRIBUTED.value else "user"
    return as_path(_WORKDIR.value) / "compiled" if where == "workdir" else None


def _report(workdir: str) -> None:
    from janus_jax.training.goodput import report

    print(report(as_path(workdir)))


def _replay(folder: str) -> None:
    from janus_jax.training.replay import read_incident, replay

    incident = read_incident(as_path(folder if "://" in folder else os.path.abspath(folder)))
    if _DISTRIBUTED.value:
        join_cluster()
    cli.enable_compilation_cache()
    if not replay(_task_of(incident), incident):
        sys.exit(ExitCode.INTERNAL_ERROR)


def _task_of(incident: "Incident") -> "TrainingTask[Any, Any]":
    """Returns the task of the run that recorded an incident."""
    from janus_jax.training.image_tokenizer.task import open_tokenizer_task
    from janus_jax.training.recipe import Recipe
    from janus_jax.training.siglip import SiglipRecipe, open_siglip_task
    from janus_jax.training.stage import stage_task

    recipe = from_config(recipe_class(incident.config), incident.config)
    if isinstance(recipe, Recipe):
        # The data of the run were divided among its processes.
        recipe = replace(recipe, data_shards=recipe.data_shards or incident.processes)
        return stage_task(recipe, incident.run_folder.parent, is_new=incident.checkpoint() is None)
    return open_siglip_task(recipe) if isinstance(recipe, SiglipRecipe) else open_tokenizer_task(recipe)


cli.define_value_action("replay", "repeat the step of this incident folder, and exit", _replay)
cli.define_value_action("report", "print how the runs in this workdir have spent their time, and exit", _report)


def run() -> None:
    """Runs `janus-train`."""
    cli.run(main, name="janus-train")
