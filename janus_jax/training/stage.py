"""Trains one stage of a Janus or JanusFlow recipe.

WORKDIR/tokenizer/     files of the tokenizer and the processor, written by the first stage
WORKDIR/stage_N/       see `training.trainer`, and in addition:
    samples/           answers and generated images at intervals (`callbacks.samples`)
    benchmarks/        answers to benchmark questions at intervals (`callbacks.evaluation`)
    profile/           profiler trace, if one is requested
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from janus_jax.data.pipeline.dataset import shard_records
from janus_jax.devices import initialize_devices
from janus_jax.processing import Processor
from janus_jax.sharding import make_mesh
from janus_jax.training.callbacks.base import Callback
from janus_jax.training.callbacks.evaluation import RunBenchmarks
from janus_jax.training.callbacks.profiling import Profiling
from janus_jax.training.callbacks.replicas import ReplicaCheck
from janus_jax.training.callbacks.samples import GenerateSamples
from janus_jax.training.config_dicts import to_json
from janus_jax.training.data_task import data_fields
from janus_jax.training.image_token_check import check_image_tokens, find_image_tokenizer, save_image_tokenizer
from janus_jax.training.init_from import (
    checkpoints_folder,
    copy_tokenizer,
    find_tokenizer,
    initial_state,
    open_initialisation,
)
from janus_jax.training.recipe import Recipe
from janus_jax.training.rl.task import open_policy_inputs, policy_fields
from janus_jax.training.setup import set_up_stage
from janus_jax.training.state import TrainState
from janus_jax.training.trackers import find_trackers
from janus_jax.training.trainer import DataStart, TrainingTask, train
from janus_jax.training.unused_fields import check_unused_fields


def train_stage(
    recipe: Recipe, workdir: str | Path, devices: Sequence[jax.Device] | None = None, given: Collection[str] = ()
) -> TrainState:
    """Trains the current stage of a recipe to its last step, or continues an interrupted run.

    Args:
      recipe: The recipe; `recipe.stage` selects the stage.
      workdir: Folder of all stages, created if missing and shared by all processes.
      devices: Devices to train on; None for all.
      given: Paths of the fields that were set on the command line (`check_unused_fields`).

    Returns:
      The last train state.

    Raises:
      JanusError: The recipe, the data, the initialization or the workdir cannot be used; too many records are rejected;
        or a data worker has died.
      Diverged: The gradient is not finite more often than the recipe allows.
      Preempted: The machine is about to be preempted; a checkpoint is saved.
      Interrupted: The user pressed Ctrl-C; a checkpoint is saved.
      StorageFull: The disk is full.
    """
    folder = checkpoints_folder(workdir, recipe.stage).parent
    return train(stage_task(recipe, workdir, devices, given), folder).state


def stage_task(
    recipe: Recipe,
    workdir: str | Path,
    devices: Sequence[jax.Device] | None = None,
    given: Collection[str] = (),
    *,
    is_new: bool = False,
) -> TrainingTask[TrainState, Any]:
    """Checks all inputs of a stage and assembles its training task.

    Arguments and errors are those of `train_stage`. With `is_new` the task can initialize the state although the stage
    has checkpoints.
    """
    resources, intervals = recipe.resources, recipe.intervals
    folder = checkpoints_folder(workdir, recipe.stage).parent

    # All inputs are checked before the first device is used.
    find_trackers(recipe.trackers)
    start = open_initialisation(recipe, workdir, is_new=is_new)
    recipe = start.recipe
    check_unused_fields(recipe, given)
    recipe.check_tasks()
    image_tokenizer = find_image_tokenizer(start, workdir)
    check_image_tokens(recipe, image_tokenizer)
    for config in (recipe.stream, recipe.held_out) if recipe.current.rl is None else ():
        for component in config.components if config else ():
            shard_records([component], recipe.seed)
    tokenizer = find_tokenizer(recipe, workdir)
    processor = Processor.from_directory(tokenizer, recipe.model_config)
    samples = GenerateSamples(recipe, processor, folder)
    benchmarks = RunBenchmarks(recipe, processor, folder)
    inputs = None if recipe.current.rl is None else open_policy_inputs(recipe, processor)

    initialize_devices(resources.attention, "config.resources.attention")
    grid = make_mesh(resources.data, resources.fsdp, resources.tensor, devices)
    mesh = grid if grid.size > 1 else None
    recipe = recipe.on_platform(grid.devices.flat[0].platform)
    stage = recipe.current
    setup = set_up_stage(recipe, mesh)
    fields: dict[str, Any]
    if inputs is None:
        fields = data_fields(recipe, setup, processor, mesh)
    else:
        fields = policy_fields(recipe, setup, inputs, processor, mesh=mesh, folder=folder)

    @contextlib.contextmanager
    def open_data(start: DataStart) -> Iterator[Any]:
        copy_tokenizer(tokenizer, workdir)
        save_image_tokenizer(image_tokenizer, workdir)
        with fields["open_data"](start) as data:
            yield data

    def make_callbacks(data: Any) -> Sequence[Callback]:
        return [
            ReplicaCheck(setup.abstract, mesh, resources.check_replicas),
            Profiling(folder / "profile", *intervals.profile),
            *fields["make_callbacks"](data),
            samples,
            benchmarks,
        ]

    steps_field = f"config.stages.stage_{recipe.stage}.{'steps' if stage.stop_at is None else 'stop_at'}"

    return TrainingTask(
        config=to_json(recipe),
        abstract_state=setup.abstract,
        initial_state=lambda data: initial_state(recipe, workdir, setup, start.checkpoints),
        mesh=mesh,
        restart_data=recipe.data.restart,
        last_step=stage.last_step,
        steps_field=steps_field,
        save_every=intervals.save,
        report_every=intervals.report,
        keep=recipe.keep,
        trackers=recipe.trackers,
        max_skipped=recipe.max_skipped,
        limits=resources,
        incidents=recipe.incidents,
        **fields | {"open_data": open_data, "make_callbacks": make_callbacks},
    )
