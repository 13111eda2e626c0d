"""The training loop. One loop trains Janus, JanusFlow, image tokenizers and encoders.

A `TrainingTask` provides the step, the data and the callbacks. The trainer restores the newest checkpoint or
initializes the state, runs the steps, writes metrics, saves checkpoints and handles preemption. Calling it again
continues an interrupted run.

Files, below the folder of the run:

    checkpoints/    see `training.checkpointing`
    metrics.jsonl   metrics, one JSON object per line
    run.json        id of the run
    tensorboard/    the same metrics, with texts and images of the callbacks; other trackers have other files
    goodput/        how the time was spent, one JSON file for each start of the run
    stalls/         Python stacks of processes that were stuck
    incidents/      steps to replay, see `training.incidents`
    not_finite/     example ids of batches with a non-finite gradient
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from janus_jax.buckets import as_path
from janus_jax.coordination import barrier
from janus_jax.errors import DataChanged, RewardUnavailable
from janus_jax.training.callbacks.base import Callback, TrainingRun, is_due
from janus_jax.training.checkpointing import Checkpoints, RetentionPolicy
from janus_jax.training.console import Console, changed_fields, describe_state
from janus_jax.training.goodput import Goodput
from janus_jax.training.incidents import IncidentOptions, Incidents
from janus_jax.training.metric_writer import MetricWriter
from janus_jax.training.metrics import StepMetrics
from janus_jax.training.phases import Phases
from janus_jax.training.preemption import Preemption
from janus_jax.training.stragglers import Stragglers
from janus_jax.training.trackers import DEFAULT_TRACKERS
from janus_jax.training.watchdog import Limits, Watchdog

S = TypeVar("S")
D = TypeVar("D", bound="DataIterator")


class DataIterator(Protocol):
    """Iterator over the batches of this process, with a position that can be saved.

    Attributes:
      example_ids: Ids of the examples in the last batch, by sequence; empty if the data has no ids.
    """

    @property
    def example_ids(self) -> Sequence[Sequence[str]]: ...

    def __next__(self) -> Any: ...

    def get_state(self) -> Any:
        """Returns the position between two batches, as JSON values."""


@dataclass(frozen=True)
class DataStart:
    """Where the data of a run starts.

    Attributes:
      step: Training steps taken.
      order: Number of times that a run has started a new order of its data. Each order has its own seed.
      positions: Positions that the processes have saved, in process order; None for the first record of the order.
    """

    step: int = 0
    order: int = 0
    positions: Sequence[Any] | None = None

    def seed(self, seed: int) -> int:
        """Returns the seed of the order, from the seed of the run."""
        return int(np.random.SeedSequence((seed, self.order)).generate_state(1)[0]) if self.order else seed


@dataclass(frozen=True, kw_only=True)
class TrainingTask(Generic[S, D]):
    """Step, data, callbacks and settings of a training run.

    Attributes:
      config: Configuration as JSON values. It is saved with each checkpoint.
      abstract_state: Shapes, dtypes and shardings of the train state.
      initial_state: Makes the state before the first step. If it reads from the data, it must restore the data
        position.
      step: Compiled step from a state and a batch of this process to the next state and scalar metrics. It may donate
        the state. A metric `finite` of 0 means that the step skipped its update because of a non-finite gradient.
      compile: Compiles the step for these arguments, so that the next call of `step` runs at once; None if the step
        compiles when it is called first.
      open_data: Opens the data. It raises `DataChanged` if the saved positions belong to other data.
      counts: Work done for one batch by all processes, for example tokens, samples and FLOPs. The trainer reports each
        as a rate.
      last_step: Step at which training ends.
      save_every: Steps between checkpoints. 0 saves at the end only.
      report_every: Steps between reports of metrics. 0 reports at the end only.
      mesh: Mesh that holds the state; None for a single device.
      make_callbacks: Makes the callbacks, which run in order.
      keep: Retention policy of the checkpoints.
      trackers: Names of the trackers that show the run (`trackers.find_trackers`).
      learning_rate: Learning rate of each step, counted from 0, for the report; None omits it.
      max_skipped: Steps that may be skipped because of a non-finite gradient. One more ends the run.
      peak_flops: FLOP/s of all devices together, the reference of `mfu`; None omits `mfu`.
      progress_metrics: Names of the first metrics of the progress line. Their parts, such as `loss/TASK`, follow.
      facts: Facts that the trainer prints at the start, such as the size of a batch, by name.
      steps_field: Name of the setting that determines `last_step`, for messages.
      incidents: Which steps are recorded for `training.replay`.
      limits: When the run is stuck and ends.
      restart_data: Whether a resumed run starts a new order of the data if the saved positions belong to other data.
      position_before: Returns the position of the data before a batch whose step raised `RewardUnavailable`, so that
        this state can be saved; None if no step raises it.
    """

    config: Mapping[str, Any]
    abstract_state: S
    initial_state: Callable[[D], S]
    step: Callable[[S, Any], tuple[S, Mapping[str, Any]]]
    open_data: Callable[[DataStart], contextlib.AbstractContextManager[D]]
    counts: Callable[[Any, D], Mapping[str, float]]
    last_step: int
    save_every: int
    report_every: int
    compile: Callable[[S, Any], Any] | None = None
    mesh: Mesh | None = None
    make_callbacks: Callable[[D], Sequence[Callback]] = lambda data: ()
    keep: RetentionPolicy = field(default_factory=RetentionPolicy)
    trackers: Sequence[str] = DEFAULT_TRACKERS
    learning_rate: Callable[[int], Any] | None = None
    max_skipped: int = 0
    peak_flops: float | None = None
    progress_metrics: tuple[str, ...] = ("loss",)
    facts: Mapping[str, str] = field(default_factory=dict)
    steps_field: str = "config.steps"
    incidents: IncidentOptions = field(default_factory=IncidentOptions)
    limits: Limits = field(default_factory=Limits)
    restart_data: bool = False
    position_before: Callable[[Any, D], Any] | None = None


@dataclass(frozen=True)
class TrainingResult(Generic[S]):
    """State after the last step, and the last values of metrics and evaluation scores."""

    state: S
    metrics: Mapping[str, float]


def train(task: TrainingTask[S, Any], folder: str | Path) -> TrainingResult[S]:
    """Trains to the last step, starting from the newest checkpoint in the folder if there is one.

    Args:
      task: The training task.
      folder: Folder of the run, created if missing and shared by all processes; it can be on a bucket (gs://).

    Raises:
      JanusError: The folder cannot be used, or its checkpoints belong to another model or to other data.
      Diverged: More gradients than `max_skipped` are not finite; or a metric is not finite, if there is no `finite`.
      Preempted: The machine is about to be preempted; a checkpoint is saved.
      Interrupted: The user pressed Ctrl-C; a checkpoint is saved.
      RewardUnavailable: A reward service does not answer; a checkpoint is saved.
      StorageFull: The disk is full.
      StorageUnavailable: The folder is on a bucket that does not answer.
      Stalled: Other processes of the cluster did not start, restore or save in time.
    """
    folder, phases = as_path(folder), Phases()
    with (
        Goodput(phases, folder) as goodput,
        Watchdog(phases, task.limits, folder) as watchdog,
        contextlib.ExitStack() as stack,
    ):
        try:
            return _train(task, folder, stack, phases, goodput)
        except BaseException as error:
            # Here, because the stack waits for the other processes.
            if stalled := watchdog.report(error):
                raise stalled from error
            raise


def _train(
    task: TrainingTask[S, Any], folder: Path, stack: contextlib.ExitStack, phases: Phases, goodput: Goodput
) -> TrainingResult[S]:
    barrier("start", task.limits.seconds("start"))
    incidents = Incidents(folder, task.incidents, task.config)
    checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", task.keep, keep_before=incidents.steps))
    console = stack.enter_context(Console(task.last_step))
    console.facts(describe_state(task.abstract_state, task.mesh) | dict(task.facts))
    timed = console.timed("restoring the newest checkpoint") if checkpoints.steps else contextlib.nullcontext()
    with phases("restore"), timed:
        restored = checkpoints.restore(task.abstract_state)
    start, changed = DataStart(), None
    if restored is not None:
        positions = [saved["data"] for saved in restored.data_states]
        start = DataStart(restored.step, restored.data_state["order"], positions)
    try:
        data = stack.enter_context(task.open_data(start))
    except DataChanged as error:
        if not task.restart_data:
            raise
        # Without the saved positions, the same error is not raised again.
        start, changed = DataStart(start.step, start.order + 1), error.difference
        data = stack.enter_context(task.open_data(start))
    if restored is None:
        with phases("restore"), console.timed("initializing the parameters"):
            state, step, skipped = task.initial_state(data), 0, 0
    else:
        state, step, skipped = restored.state, restored.step, restored.data_state["skipped"]
        console.message(f"resuming after step {step:,} of {task.last_step:,}, saved in {folder}/checkpoints/{step}")
        for change in changed_fields(restored.config, json.loads(json.dumps(task.config))):
            console.message(f"changed since this checkpoint: {change}")

    writer = stack.enter_context(MetricWriter(folder, console, step, trackers=task.trackers, config=task.config))
    if changed is not None:
        console.message(f"starting order {start.order} of the data: {changed}")
        writer.scalars(step, {"data/order": start.order})
        writer.texts(step, {"data/order": changed})
    stragglers = Stragglers(phases)
    preemption = stack.enter_context(Preemption(console.message))
    callbacks = task.make_callbacks(data)
    for callback in callbacks:
        stack.callback(callback.close)
    metrics = StepMetrics(
        writer=writer,
        folder=folder,
        incidents=incidents,
        is_due=lambda step: is_due(step, task.report_every, task.last_step),
        learning_rate=task.learning_rate,
        max_skipped=task.max_skipped,
        skipped=skipped,
        peak_flops=task.peak_flops,
        progress_metrics=task.progress_metrics,
        more=lambda step: goodput.shares() | stragglers.report(step),
    )
    goodput.resumed(step)
    run = TrainingRun(state, step, task.last_step, writer, task.mesh)
    del state, restored  # The first step donates these arrays.
    for callback in callbacks:
        callback.on_start(run)

    def save(position: Any) -> None:
        # Metrics of a saved step must be written, because a resumed run does not repeat it.
        metrics.flush()
        writer.flush()
        saved = {"data": position, "order": start.order, "skipped": metrics.skipped}
        for callback in callbacks:
            callback.before_save(run)
        goodput.saved(run.step)
        with phases("save"):
            checkpoints.save(run.step, run.state, saved, task.config, metrics.last | run.scores)

    if run.step >= task.last_step:
        console.message(
            f"The run is finished, nothing is left to train. To train longer, raise {task.steps_field}; to start "
            f"again, choose another folder."
        )
    with phases("step"):
        is_compiled = False
        while run.step < task.last_step:
            phases.begin_step(run.step + 1)
            with phases("data"), metrics.meter.waiting():
                batch = next(data)
            if task.limits.step_barrier:
                with phases("barrier"):
                    barrier("step", task.limits.seconds("barrier"))
            for callback in callbacks:
                callback.before_step(run.step + 1)
            with phases("step" if is_compiled else "compile"), console.stepping(run.step + 1):
                if not is_compiled and task.compile is not None:
                    task.compile(run.state, batch)
                    # The network between the devices does not wait for a process that compiles longer.
                    barrier("compile", task.limits.seconds("compile"))
                try:
                    run.state, run.metrics = task.step(run.state, batch)
                except RewardUnavailable:
                    # Raised before the update, in all processes: the state is that of the step before.
                    if task.position_before is not None:
                        save(task.position_before(batch, data))
                        checkpoints.wait()
                    raise
                if not is_compiled:
                    jax.block_until_ready(run.metrics)
            run.step += 1
            goodput.took(run.step)
            if not is_compiled:
                stragglers.start(run.step)
            is_compiled = True
            metrics.add(run.step, run.metrics, data.example_ids, task.counts(batch, data), batch)
            with phases("evaluate"):
                for callback in callbacks:
                    callback.after_step(run)
            is_preempted = preemption.reached(run.step)
            if is_preempted or run.is_due(task.save_every):
                save(data.get_state())
            if is_preempted:
                with phases("save"):
                    checkpoints.wait()
                raise preemption.stopped(run.step)
            if run.step == task.last_step:
                with phases("save"):
                    checkpoints.wait()
                console.message(f"finished: step {run.step:,} is saved in {folder}/checkpoints/{run.step}")
    with phases("save"):
        barrier("end", task.limits.seconds("save"))
    console.message(goodput.summary())
    return TrainingResult(run.state, metrics.last | run.scores)
