"""Trains one stage of a Janus or JanusFlow recipe.

WORKDIR/tokenizer/     files of the tokenizer and the processor, written by the first stage
WORKDIR/stage_N/       see `training.trainer`, and in addition:
    samples/           answers and generated images at intervals (`callbacks.samples`)
    benchmarks/        answers to benchmark questions at intervals (`callbacks.evaluation`)
    profile/           profiler trace, if one is requested
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict

from janus_jax.accelerators import peak_flops
from janus_jax.batch import Batch
from janus_jax.data.pipeline.dataset import shard_records
from janus_jax.data.pipeline.stream import Stream, open_stream, shard_states
from janus_jax.devices import initialize_devices
from janus_jax.errors import DataChanged
from janus_jax.processing import Processor, Task
from janus_jax.sharding import make_mesh
from janus_jax.training.callbacks.base import Callback
from janus_jax.training.callbacks.evaluation import RunBenchmarks
from janus_jax.training.callbacks.held_out import HeldOutLoss
from janus_jax.training.callbacks.profiling import Profiling
from janus_jax.training.callbacks.replicas import ReplicaCheck
from janus_jax.training.callbacks.samples import GenerateSamples
from janus_jax.training.config_dicts import to_json
from janus_jax.training.flops import ItemCounts, count_items, flops_per_item
from janus_jax.training.image_token_check import check_image_tokens, find_image_tokenizer, save_image_tokenizer
from janus_jax.training.init_from import (
    checkpoints_folder,
    copy_tokenizer,
    find_tokenizer,
    initial_state,
    open_initialisation,
)
from janus_jax.training.optimizers import make_schedule
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import set_up_stage
from janus_jax.training.state import TrainState
from janus_jax.training.trackers import find_trackers
from janus_jax.training.train_step import make_evaluation_step, put_batch
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
) -> TrainingTask[TrainState, Stream]:
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
    for config in (recipe.stream, recipe.held_out):
        for component in config.components if config else ():
            shard_records([component], recipe.seed)
    tokenizer = find_tokenizer(recipe, workdir)
    processor = Processor.from_directory(tokenizer, recipe.model_config)
    samples = GenerateSamples(recipe, processor, folder)
    benchmarks = RunBenchmarks(recipe, processor, folder)

    initialize_devices(resources.attention, "config.resources.attention")
    grid = make_mesh(resources.data, resources.fsdp, resources.tensor, devices)
    mesh = grid if grid.size > 1 else None
    recipe = recipe.on_platform(grid.devices.flat[0].platform)
    stage = recipe.current
    setup = set_up_stage(recipe, mesh)
    costs = flops_per_item(recipe.model_config, flatten_dict(setup.abstract.params, sep="/"))
    device_flops = resources.peak_flops or peak_flops(grid.devices.flat[0].device_kind, recipe.execution.dtype)

    @contextlib.contextmanager
    def open_data(start: DataStart) -> Iterator[Stream]:
        copy_tokenizer(tokenizer, workdir)
        save_image_tokenizer(image_tokenizer, workdir)
        # A run keeps its number of data shards, also if it resumes with another number of processes.
        saved = shard_states(start.positions or [])
        _check_shards(len(saved), jax.process_count(), recipe.stream.batch_size)
        with open_stream(
            replace(recipe.stream, seed=start.seed(recipe.seed), first_step=start.step),
            processor,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            shards=len(saved) or recipe.data_shards,
            workers=resources.data_workers,
            threads=resources.data_threads,
            transfer=transfer,
        ) as data:
            if saved:
                data.set_state(saved)
            yield data

    def transfer(batch: Batch) -> tuple[Batch, ItemCounts]:
        # Counted before the arrays are on the devices.
        return put_batch(batch, mesh), count_items(batch, recipe.model_config)

    def make_callbacks(data: Stream) -> Sequence[Callback]:
        callbacks: list[Callback] = [
            ReplicaCheck(setup.abstract, mesh, resources.check_replicas),
            Profiling(folder / "profile", *intervals.profile),
        ]
        if recipe.held_out is not None:
            loss = make_evaluation_step(setup.objective, recipe.microbatching, setup.abstract, mesh, seed=recipe.seed)
            # The few batches of an evaluation are read in threads: starting processes would take longer.
            held_out = open_stream(
                recipe.held_out,
                processor,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                shards=len(shard_states([data.get_state()])) * jax.process_count(),
                threads=max(resources.data_threads, resources.data_workers),
            )
            # The image tokens of edits are targets of generation; text in conversations has several terms.
            terms = {Task.EDITING: Task.GENERATION, Task.INTERLEAVED: Task.GENERATION}
            given_tasks = [component.task for component in recipe.held_out.components if component.task]
            tasks = sorted({terms.get(task, task).value for task in given_tasks})
            callbacks.append(HeldOutLoss(held_out, loss, intervals.evaluate_batches, intervals.evaluate, tasks=tasks))
        return [*callbacks, samples, benchmarks]

    steps_field = f"config.stages.stage_{recipe.stage}.{'steps' if stage.stop_at is None else 'stop_at'}"

    def counts(batch: tuple[Batch, ItemCounts], data: Stream) -> Mapping[str, float]:
        # Every process has an equal share of the batch.
        _, held = batch
        share = {"tokens": held.tokens, "samples": sum(map(len, data.example_ids)), "flops": held.flops(costs)}
        return {name: count * jax.process_count() for name, count in share.items()}

    return TrainingTask(
        config=to_json(recipe),
        abstract_state=setup.abstract,
        initial_state=lambda data: initial_state(recipe, workdir, setup, start.checkpoints),
        step=lambda state, batch: setup.step(state, batch[0]),
        compile=lambda state, batch: setup.step.lower(state, batch[0]).compile(),
        mesh=mesh,
        open_data=open_data,
        restart_data=recipe.data.restart,
        counts=counts,
        last_step=stage.last_step,
        steps_field=steps_field,
        facts=_facts(recipe),
        save_every=intervals.save,
        report_every=intervals.report,
        make_callbacks=make_callbacks,
        keep=recipe.keep,
        trackers=recipe.trackers,
        learning_rate=make_schedule(stage.optimizer, stage.steps),
        max_skipped=recipe.max_skipped,
        limits=resources,
        incidents=recipe.incidents,
        peak_flops=device_flops and device_flops * grid.size,
    )


def _facts(recipe: Recipe) -> dict[str, str]:
    stage, tokens = recipe.current, recipe.current.budget.tokens
    size = f"{stage.batch_size:,} sequences of {tokens:,} tokens, {stage.batch_size * tokens:,} tokens in all"
    stream, held_out = recipe.stream, recipe.held_out
    evaluated = [component.name for component in held_out.components] if held_out else []
    missing = [component.name for component in stream.components if component.name not in evaluated]
    fact = ", ".join(evaluated) or "none"
    if missing:
        fact += f" (to add {missing[0]}, set config.sources.{missing[0]}.held_out)"
    return {"batch": size, "data": ", ".join(component.name for component in stream.components), "held out": fact}


def _check_shards(shards: int, processes: int, batch_size: int) -> None:
    """Checks that the processes can continue with the data shards of a checkpoint; 0 without a checkpoint."""
    if shards % processes:
        raise DataChanged(f"The data has {shards} shards, which {processes} processes cannot share evenly")
    if shards and batch_size % shards:
        raise DataChanged(f"The data has {shards} shards, which cannot share a batch of {batch_size} sequences evenly")
