"""The parts of a training task that depend on learning from prepared data."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from janus_jax.accelerators import peak_flops
from janus_jax.batch import Batch
from janus_jax.data.pipeline.stream import Stream, open_stream, shard_states
from janus_jax.errors import DataChanged
from janus_jax.processing import Processor, Task
from janus_jax.training.callbacks.base import Callback
from janus_jax.training.callbacks.held_out import HeldOutLoss
from janus_jax.training.flops import ItemCounts, count_items, flops_per_item
from janus_jax.training.optimizers import make_schedule
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import StageSetup
from janus_jax.training.train_step import make_evaluation_step, put_batch
from janus_jax.training.trainer import DataStart


def data_fields(recipe: Recipe, setup: StageSetup, processor: Processor, mesh: Mesh | None) -> dict[str, Any]:
    """Returns the fields of the training task that depend on the data.

    Args:
      recipe: The recipe, with dtypes for the platform.
      setup: Objective, optimizer and step of the stage.
      processor: Processor of the model.
      mesh: Mesh of the run; None for a single device.
    """
    resources, stage = recipe.resources, recipe.current
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    costs = flops_per_item(recipe.model_config, flatten_dict(setup.abstract.params, sep="/"))
    device_flops = resources.peak_flops or peak_flops(device.device_kind, recipe.execution.dtype)

    @contextlib.contextmanager
    def open_data(start: DataStart) -> Iterator[Stream]:
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
        if recipe.held_out is None:
            return []
        intervals = recipe.intervals
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
        return [HeldOutLoss(held_out, loss, intervals.evaluate_batches, intervals.evaluate, tasks=tasks)]

    def counts(batch: tuple[Batch, ItemCounts], data: Stream) -> Mapping[str, float]:
        # Every process has an equal share of the batch.
        _, held = batch
        share = {"tokens": held.tokens, "samples": sum(map(len, data.example_ids)), "flops": held.flops(costs)}
        return {name: count * jax.process_count() for name, count in share.items()}

    return {
        "step": lambda state, batch: setup.step(state, batch[0]),
        "compile": lambda state, batch: setup.step.lower(state, batch[0]).compile(),
        "open_data": open_data,
        "make_callbacks": make_callbacks,
        "counts": counts,
        "facts": _facts(recipe),
        "learning_rate": make_schedule(stage.optimizer, stage.steps),
        "peak_flops": device_flops and device_flops * (1 if mesh is None else mesh.size),
    }


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
