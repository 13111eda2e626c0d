"""Checkpoints of a training run, saved in the background and verified when restored.

    DIR/1200/           checkpoint of step 1200, see `checkpoint_files`
    DIR/damaged/1300/   damaged checkpoint that a resumed run skipped

A checkpoint receives its final name only when it is complete, including its checksums. On a bucket, Orbax writes the
marker commit_success.txt last instead. The next run removes the files of an interrupted save.
"""

import contextlib
import datetime
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, get_args

import jax
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
from absl import flags
from orbax.checkpoint import checkpoint_managers as policies

from janus_jax.buckets import bucket_errors, is_remote, move_folder, remove_folder
from janus_jax.coordination import barrier, combine
from janus_jax.errors import JanusError, RunStopped, StorageFull, StorageUnavailable
from janus_jax.storage import CHECK_DISK, failed_disk, hide_storage_traces, is_disk_full
from janus_jax.training.checkpoint_files import (
    RUN,
    STATE,
    DamagedCheckpointError,
    absolute_path,
    describe_arrays,
    finished_steps,
    read_run,
    read_state,
    write_checksums,
)
from janus_jax.training.config_dicts import check_values
from janus_jax.training.watchdog import report_error

_log = logging.getLogger(__name__)

_DAMAGED = "damaged"
_UNFINISHED = ".orbax-checkpoint-tmp"
_SAVE_TIMEOUT = 1800  # seconds

# Orbax otherwise runs collective operations on the devices as barriers, which have no limit.
flags.FLAGS.set_default("experimental_orbax_use_distributed_barrier", True)

S = TypeVar("S")
BestIs = Literal["min", "max"]


@dataclass(frozen=True)
class CheckpointInfo:
    """Facts about a checkpoint for the retention policy. Orbax policies read these fields by name.

    Attributes:
      step: Steps taken.
      time: Time of the save.
      metrics: Value of `best_by`; None if it is missing or not finite.
    """

    step: int
    time: datetime.datetime
    metrics: float | None


@dataclass(frozen=True)
class RetentionPolicy:
    """Rules for which checkpoints are kept. A checkpoint is kept if at least one rule keeps it.

    Attributes:
      last: Number of newest checkpoints to keep, at least 2, so that one remains if the newest is damaged.
      every_seconds: Minimum time between checkpoints that are kept permanently; None for no such checkpoints.
      every_steps: Checkpoints at multiples of this number of steps are kept permanently; None for no such checkpoints.
      best: Number of checkpoints to keep that have the best values of `best_by`.
      best_by: Name of a metric or score.
      best_is: "min" if the lowest value of `best_by` is best, "max" if the highest is.

    Raises:
      JanusError: A value is out of range.
    """

    last: int = 3
    every_seconds: int | None = None
    every_steps: int | None = None
    best: int = 0
    best_by: str = "loss"
    best_is: BestIs = "min"

    def __post_init__(self) -> None:
        best_is = ("best_is", self.best_is in get_args(BestIs), "min or max")
        check_values(self, "config.keep", best_is, last=2, every_seconds=1, every_steps=1, best=0)

    def is_kept(self, checkpoints: Sequence[CheckpointInfo]) -> list[bool]:
        """Returns for each checkpoint, in step order, whether it is kept."""
        rules: list[Any] = [policies.LatestN(self.last)]
        if self.every_steps is not None:
            rules.append(policies.EveryNSteps(self.every_steps))
        if self.every_seconds is not None:
            rules.append(policies.EveryNSeconds(self.every_seconds))
        if self.best:
            rules.append(
                policies.BestN(
                    n=self.best,
                    get_metric_fn=lambda score: score,
                    reverse=self.best_is == "min",
                    keep_checkpoints_without_metrics=False,
                )
            )
        kept: list[bool] = policies.AnyPreservationPolicy(rules).should_preserve(
            checkpoints, context=policies.PreservationContext()
        )
        return kept


@dataclass(frozen=True)
class Restored(Generic[S]):
    """Content of a restored checkpoint.

    Attributes:
      step: Steps taken.
      state: The state, on its devices.
      data_states: The `data_state` that each process passed to `save`, in process order.
      config: Config of the run as JSON values.
    """

    step: int
    state: S
    data_states: Sequence[dict[str, Any]]
    config: dict[str, Any]

    @property
    def data_state(self) -> dict[str, Any]:
        """The data state of this process. If the number of processes has changed, that of any saved process."""
        return self.data_states[jax.process_index() % len(self.data_states)]


class Checkpoints:
    """Saves and restores the checkpoints of a run. On exit from its context it waits for the current save.

    All processes call every method. The constructor removes unfinished saves of an interrupted run.

    Args:
      directory: Folder of the checkpoints, created if missing.
      keep: Which checkpoints are kept.
      keep_before: Steps; the newest checkpoint before each of them is also kept. The caller may append to it.

    Raises:
      JanusError: The folder cannot be created or read.
    """

    def __init__(
        self, directory: str | Path, keep: RetentionPolicy | None = None, *, keep_before: Sequence[int] = ()
    ) -> None:
        self._directory = absolute_path(directory)
        self._keep, self._keep_before = keep or RetentionPolicy(), keep_before
        self._infos: dict[int, CheckpointInfo] = {}
        self._saving: int | None = None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            # Otherwise Orbax reads metrics of all checkpoints, and fails if one is damaged.
            lightweight_initialize=True,
            async_options=ocp.AsyncOptions(
                timeout_secs=_SAVE_TIMEOUT, post_finalization_callback=self._write_checksums
            ),
        )
        self._show_traces = hide_storage_traces()
        try:
            # Orbax would do this in the background, and might not finish before a short run ends.
            with bucket_errors(self._directory):
                self._remove_unfinished()
                barrier("remove_unfinished")
                self._manager = _Manager(self._directory, options=options, item_handlers=_handlers())
                self._manager.on_error = self._report
        except (JanusError, RunStopped):
            self._show_traces()
            raise
        except OSError as error:
            self._show_traces()
            if is_disk_full(error):
                raise StorageFull(
                    f"{directory} cannot be written, the disk is full; free some space and repeat the command."
                ) from error
            raise JanusError(f"{directory} cannot hold checkpoints ({error.strerror or error}).") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # The error that ends the run is reported, not a failure of its last save.
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            self.close()

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints in the folder, including damaged ones that were not read yet."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Any,
        data_state: Mapping[str, Any],
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts a save. Returns when the state may be donated to the next step. Does nothing if the step is saved.

        Args:
          step: Steps taken.
          state: Tree of arrays.
          data_state: Small JSON values of this process, such as the position of its data iterator.
          config: Config of the run as JSON values.
          metrics: Metrics that `RetentionPolicy.best_by` can name.

        Raises:
          StorageFull: This or the previous save found the disk full. Older checkpoints are intact.
          StorageUnavailable: The bucket did not answer to this or the previous save, or the disk has failed. Older
            checkpoints are intact.
        """
        if step in self.steps:
            return
        # Only process 0, which writes them, needs the positions of all processes.
        positions: list[Any] = []

        def first_time(processes: Sequence[Mapping[str, Any]]) -> float:
            positions.extend(process["data"] for process in processes)
            return float(processes[0]["time"])

        content = {
            "step": step,
            "time": combine("save", {"time": time.time(), "data": data_state}, first_time),
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
            "config": config,
            "data": positions,
            "arrays": describe_arrays(state),
        }
        with self._storage_errors_handled():
            self._manager.wait_until_finished()
            self._infos[step] = self._info(step, content)
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(state), RUN: ocp.args.JsonSave(content)}),
                force=True,
            )

    def wait(self) -> None:
        """Waits for the current save.

        Raises:
          StorageFull, StorageUnavailable: See `save`.
        """
        with self._storage_errors_handled():
            self._manager.wait_until_finished()

    def restore(self, abstract: S) -> Restored[S] | None:
        """Restores the newest undamaged checkpoint; returns None if the folder has no checkpoint.

        Damaged checkpoints are reported as warnings. When an undamaged one is found they are moved to `damaged/`.

        Args:
          abstract: Shapes, dtypes and shardings of the state, on any mesh.

        Raises:
          JanusError: All checkpoints are damaged, or the newest undamaged one belongs to another model.
        """
        damaged: list[int] = []
        for step in reversed(self.steps):
            path = self._directory / str(step)
            try:
                content, state = read_state(path, abstract)
            except DamagedCheckpointError as error:
                _log.warning("%s is damaged (%s); trying the checkpoint before it.", path, error)
                damaged.append(step)
                continue
            self._move_damaged(damaged)
            return Restored(step, state, content["data"], content["config"])
        if damaged:
            raise JanusError(
                f"{self._directory} has only damaged checkpoints: {', '.join(map(str, sorted(damaged)))}; restore one "
                f"from a copy, or start in another folder."
            )
        return None

    def close(self) -> None:
        """Waits for the current save and releases the folder.

        Raises:
          StorageFull, StorageUnavailable: See `save`.
        """
        try:
            self.wait()
        finally:
            # `close` raises what failed in the background while `save` failed.
            with self._storage_errors_handled():
                self._manager.close()
            self._show_traces()

    def _write_checksums(self) -> None:
        # Orbax calls this in a background thread of the first process, after all files are written and before the final
        # rename. Object stores cannot rename: there the folder has its final name, and a marker file is written last.
        remote = is_remote(self._directory)
        unfinished = [] if remote else list(self._directory.glob(f"{self._saving}{_UNFINISHED}*"))
        write_checksums(unfinished[0] if unfinished else self._directory / str(self._saving))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each checkpoint whether it is kept. Orbax calls this method of its preservation policy."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        for step in steps:
            if step not in self._infos:
                try:
                    content = read_run(self._directory / str(step))
                except Exception:  # A checkpoint that cannot be read has no metrics and counts as old.
                    content = {"time": 0.0, "metrics": {}}
                self._infos[step] = self._info(step, content)
        needed = {max((step for step in steps if step < later), default=None) for later in self._keep_before}
        kept = self._keep.is_kept([self._infos[step] for step in steps])
        return [is_kept or step in needed for step, is_kept in zip(steps, kept, strict=True)]

    def _info(self, step: int, content: Mapping[str, Any]) -> CheckpointInfo:
        score = content["metrics"].get(self._keep.best_by, math.nan)
        saved = datetime.datetime.fromtimestamp(content["time"], datetime.UTC)
        return CheckpointInfo(step, saved, score if math.isfinite(score) else None)

    def _move_damaged(self, steps: Sequence[int]) -> None:
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                source, target = self._directory / str(step), self._directory / _DAMAGED / str(step)
                remove_folder(target)
                if is_remote(target):
                    move_folder(source, target)
                else:
                    target.parent.mkdir(exist_ok=True)
                    source.rename(target)
        barrier("move_damaged")  # No process lists the folder before the move.
        self._manager.reload()

    def _remove_unfinished(self) -> None:
        if jax.process_index() != 0:
            return
        if is_remote(self._directory):
            finished = set(map(str, finished_steps(self._directory)))
            for path in self._directory.glob("*"):
                if path.name.isdecimal() and path.name not in finished:
                    remove_folder(path)
            return
        for path in self._directory.glob(f"*{_UNFINISHED}*"):
            with contextlib.suppress(OSError):
                path.rmtree()

    @contextlib.contextmanager
    def _storage_errors_handled(self) -> Iterator[None]:
        """Raises `StorageFull` or `StorageUnavailable` for errors of the disk or bucket.

        If the disk is full, first removes the unfinished save.
        """
        try:
            with self._storage_errors_explained():
                yield
        except StorageFull:
            self._remove_unfinished()
            self._manager.reload()
            raise

    @contextlib.contextmanager
    def _storage_errors_explained(self) -> Iterator[None]:
        try:
            with bucket_errors(self._directory):
                yield
        except (JanusError, RunStopped):
            raise
        except Exception as error:
            if is_disk_full(error):
                newest = f"the newest is that of step {self.steps[-1]}" if self.steps else "there is none before it"
                raise StorageFull(
                    f"{self._directory} has no space for a checkpoint ({newest}); free some space and repeat the "
                    f"command."
                ) from error
            if reason := failed_disk(error):
                path = f"{self._directory}/{self._saving}"
                raise StorageUnavailable(f"{path} cannot be written ({reason}); {CHECK_DISK}") from error
            raise

    def _report(self, error: Exception) -> None:
        try:
            with self._storage_errors_explained():
                raise error
        except Exception as explained:
            report_error(explained)


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    # Trained weights hardly compress, and compressing them takes several times as long as writing them.
    return {STATE: ocp.PyTreeCheckpointHandler(use_compression=False), RUN: ocp.JsonCheckpointHandler()}


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which passes errors of saves in the background to `on_error`, in one of its threads."""

    on_error: Callable[[Exception], None]

    def _wait_for_checkpointers(self) -> None:
        try:
            super()._wait_for_checkpointers()
        except Exception as error:
            # The caller then waits for the saves of the other processes, and these wait for this one.
            self.on_error(error)
            raise

    def reached_preemption(self, step: int) -> bool:
        """Returns False, because the trainer checks for preemption and jax reports it to only one caller per step."""
        return False
