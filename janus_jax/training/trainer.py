"""The loop: from a recipe and a workdir to a trained stage. The same call goes on where a run was interrupted.

WORKDIR/tokenizer/              the tokenizer's and processor's files, from the first stage on
WORKDIR/stage_N/checkpoints/    see `train.checkpoints`
WORKDIR/stage_N/tensorboard/    figures; WORKDIR/stage_N/metrics.jsonl has them as text
WORKDIR/stage_N/not_finite/     samples of the batches whose gradient was not finite
WORKDIR/stage_N/profile/        a trace, where one is asked for
WORKDIR/stage_N/samples/        answers and images as the model stood, see `train.samples`
WORKDIR/stage_N/benchmarks/     answers to benchmarks' questions, see `train.benchmarks`
"""

import contextlib
import functools
import logging
import operator
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from janus_jax.batch import Batch
from janus_jax.config import ModelConfig
from janus_jax.data.pipeline.dataset import open_records
from janus_jax.data.pipeline.process_shards import ShardedStream, merge_shard_states, open_sharded_stream
from janus_jax.errors import Preempted
from janus_jax.processing import Processor
from janus_jax.sharding import make_mesh
from janus_jax.training.callbacks.evaluation import Evaluator
from janus_jax.training.callbacks.preemption import Preemption
from janus_jax.training.callbacks.profiling import Profile
from janus_jax.training.callbacks.samples import Sampler
from janus_jax.training.checkpointing import Checkpoints
from janus_jax.training.config_dicts import to_json
from janus_jax.accelerators import peak_flops
from janus_jax.training.flops import ItemCounts, count_items, flops_per_item
from janus_jax.training.init_from import (
    check_initialisation,
    checkpoints_folder,
    find_tokenizer,
    initial_state,
    keep_tokenizer,
)
from janus_jax.training.metric_writer import MetricWriter
from janus_jax.training.metrics import StepMetrics
from janus_jax.training.optimizers import make_schedule
from janus_jax.training.partition import merge
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import set_up_stage
from janus_jax.training.state import TrainState
from janus_jax.training.train_step import Step, evaluation_step, put_batch

_log = logging.getLogger(__name__)


def train(recipe: Recipe, workdir: str | Path, devices: Sequence[jax.Device] | None = None) -> TrainState:
    """Runs the recipe's current stage to its last step.

    Args:
      workdir: of all stages; made if need be. Several processes share it.
      devices: to train on; all of them by default.

    Raises:
      JanusError: the recipe, the data, what the stage starts from or the workdir will not do; or too many records are
        rejected, or a data worker has died.
      Diverged: the gradient is no number too often.
      Preempted: the machine is taken away; all is saved.
      StorageFull: the disk is full.
    """
    stage, resources, last_step = recipe.current, recipe.resources, recipe.current.last_step
    folder = checkpoints_folder(workdir, recipe.stage)
    tokenizer, processor = _checked(recipe, workdir)
    sampler = Sampler(recipe, processor, folder.parent)
    evaluator = Evaluator(recipe, processor, folder.parent)

    grid = make_mesh(resources.data, resources.fsdp, resources.tensor, devices)
    mesh = grid if grid.size > 1 else None
    model, optimizer, abstract, step = set_up_stage(recipe, mesh)
    costs = flops_per_item(recipe.model_config, flatten_dict(abstract.params, sep="/"))
    peak = resources.peak_flops or peak_flops(grid.devices.flat[0].device_kind, stage.precision.compute)

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(folder, recipe.keep))
        keep_tokenizer(tokenizer, workdir)

        # Where parameters come from: the newest whole checkpoint of this stage in the workdir, which brings moments,
        # step and data with it. Where there is none, what the stage's `initialisation` names, at step 0 with new
        # moments: the stage before in the same workdir (its average, where it kept one); or a whole model's folder; or
        # the folders of an LLM, a SigLIP and an image tokenizer, and the seed for what they lack; or the seed alone.
        restored = checkpoints.restore(abstract)
        # Data are dealt out once: on another number of processes, each holds more or fewer of the same shares.
        read = merge_shard_states([one["stream"] for one in restored.data_states]) if restored else []
        shares = len(read) or recipe.data_shards or jax.process_count()
        place = (processor, jax.process_index(), jax.process_count(), shares, resources.data_workers)
        stream = stack.enter_context(open_sharded_stream(recipe.stream, *place))
        held_out = None
        if recipe.held_out is not None:
            held_out = _HeldOut(
                stack.enter_context(open_sharded_stream(recipe.held_out, *place)),
                evaluation_step(model, recipe.cut, abstract, mesh, recipe.seed),
                recipe.intervals.evaluate_batches,
            )
        if restored is None:
            state, done, skipped = initial_state(recipe, workdir, optimizer, abstract), 0, 0
        else:
            state, done, skipped = restored.state, restored.step, restored.data_state["skipped"]
            stream.set_state(read)
            if not restored.was_made_with(to_json(recipe)):
                _log.warning("The config is not the one that the checkpoint of step %d was made with.", done)

        def is_due(interval: int, at: int) -> bool:
            return at == last_step or bool(interval and at % interval == 0)

        intervals = recipe.intervals
        reports = stack.enter_context(MetricWriter(folder.parent, last_step, done))
        preemption = stack.enter_context(Preemption())
        profile = stack.enter_context(Profile(folder.parent / "profile", *intervals.profile))
        figures = StepMetrics(
            reports,
            folder.parent,
            functools.partial(is_due, intervals.report),
            make_schedule(stage.optimizer, stage.steps),
            max_skipped=recipe.max_skipped,
            skipped=skipped,
            peak_flops=peak and peak * grid.size,
        )
        scores: dict[str, float] = {}
        while done < last_step:
            with figures.meter.waiting():
                batch = next(stream)
            profile.before(done + 1)
            state, metrics = step(state, put_batch(batch, mesh))
            done += 1
            profile.after(done, metrics)
            figures.add(done, metrics, stream.sample_ids, _counts(batch, stream, recipe.model_config, costs))
            if held_out and is_due(intervals.evaluate, done):
                scores = held_out.losses(state, mesh)
                reports.scalars(done, scores)
                reports.message(f"step {done}: held-out loss {scores['held_out/loss']:.4g}")
            if is_due(intervals.sample, done):
                sampler.tell(done, merge(state.params, state.frozen), mesh, reports)
            if is_due(intervals.benchmark, done):
                evaluator.tell(done, merge(state.params, state.frozen), mesh, reports)
            leaving = preemption.reached(done)
            if leaving or is_due(intervals.save, done):
                figures.settle()
                at = {"stream": stream.get_state(), "skipped": figures.skipped}
                checkpoints.save(done, state, at, to_json(recipe), figures.last | scores)
            if leaving:
                checkpoints.wait()
                raise Preempted(f"Told to go at step {done}; all is saved. Give the same command again.")
        return state


def _checked(recipe: Recipe, workdir: str | Path) -> tuple[Path, Processor]:
    """Looks at all that the run reads, before any device is asked for; the tokenizer's folder, and what it makes."""
    folder = checkpoints_folder(workdir, recipe.stage)
    # A run that goes on needs what it started from no more.
    if not any(path.name.isdecimal() for path in folder.glob("*")):
        check_initialisation(recipe, workdir)
    for stream in (recipe.stream, recipe.held_out):
        for component in stream.components if stream else ():
            open_records(component)
    tokenizer = find_tokenizer(recipe, workdir)
    return tokenizer, Processor.from_directory(tokenizer, recipe.model_config)


def _counts(batch: Batch, stream: ShardedStream, config: ModelConfig, costs: ItemCounts) -> dict[str, float]:
    """Of all processes, reckoned from this one's share."""
    held = count_items(batch, config)
    share = {"tokens": held.tokens, "samples": sum(map(len, stream.sample_ids)), "flops": held.flops(costs)}
    return {name: count * jax.process_count() for name, count in share.items()}


class _HeldOut:
    """The loss over the same few batches, each time."""

    def __init__(self, stream: ShardedStream, step: Step, batches: int) -> None:
        self._stream, self._step, self._batches = stream, step, batches
        self._start = merge_shard_states([stream.get_state()])

    def losses(self, state: TrainState, mesh: Mesh | None) -> dict[str, float]:
        """`held_out/loss`, and `held_out/loss/TERM` of each term that there is."""
        self._stream.set_state(self._start)
        batches = islice(self._stream, self._batches)
        totals = functools.reduce(operator.add, (self._step(state, put_batch(batch, mesh)) for batch in batches))
        losses = {
            f"held_out/loss/{name}": float(mean)
            for name, mean, count in zip(totals.terms.names, totals.means, totals.counts, strict=True)
            if count
        }
        return {"held_out/loss": float(totals.mean)} | losses
