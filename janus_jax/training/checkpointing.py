"""Checkpoints of a training run: saved in the background, proven when read, the damaged ones passed over.

A folder a step, each in Orbax' form:

    DIR/1200/state/          the arrays, readable with plain Orbax
    DIR/1200/run/            json: config, data iterators, metrics, and the arrays' shapes
    DIR/1200/checksums.json  size and CRC-32 of every file of these two
    DIR/damaged/1300/        what could not be read when the run went on without it

A checkpoint gets its name when all of it is there, checksums included: what a killed run leaves has none, and is
cleared away by the next.
"""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, cast, get_args

import jax
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
from etils import epath  # type: ignore[import-untyped]
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from janus_jax.errors import JanusError, StorageFull
from janus_jax.storage import is_disk_full
from janus_jax.training import checksums
from janus_jax.training.param_paths import map_named, path_name

_log = logging.getLogger(__name__)

_STATE, _RUN, _DAMAGED = "state", "run", "damaged"
_UNNAMED = ".orbax-checkpoint-tmp"
_LONGEST_SAVE = 1800  # seconds
_NO_MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")
_LONGEST_REASON = 160

_LOGGERS = (logging.getLogger("absl"), logging.getLogger("asyncio"))

S = TypeVar("S")
T = TypeVar("T")
BestIs = Literal["min", "max"]


@dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints stay: those that any of these keeps.

    Attributes:
      last: so many of the newest. Two at least, so that there is one before a damaged one.
      every_seconds: one in so many seconds, for good.
      every_steps: those at multiples of so many steps, for good.
      best: so many of those with the best `best_by`.
      best_by: a name in the metrics of `save`.
      best_is: whether the lowest or the highest is best.

    Raises:
      JanusError: a number or a word cannot be what it is.
    """

    last: int = 3
    every_seconds: int | None = None
    every_steps: int | None = None
    best: int = 0
    best_by: str = "loss"
    best_is: BestIs = "min"

    def __post_init__(self) -> None:
        for name, least in (("last", 2), ("every_seconds", 1), ("every_steps", 1), ("best", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise JanusError(f"keep.{name} is {value}; it must be {least} or more.")
        if self.best_is not in get_args(BestIs):
            raise JanusError(f"keep.best_is is {self.best_is!r}; it must be one of {', '.join(get_args(BestIs))}.")

    def chosen(self, facts: Mapping[int, "Facts"]) -> set[int]:
        """The steps that stay, of those that there are."""
        steps = sorted(facts)
        kept = set(steps[-self.last :])
        if self.every_steps is not None:
            kept |= {step for step in steps if step % self.every_steps == 0}
        if self.every_seconds is not None:
            latest = -math.inf
            for step in steps:
                if facts[step].time - latest >= self.every_seconds:
                    kept.add(step)
                    latest = facts[step].time
        scores = {step: facts[step].metrics.get(self.best_by, math.nan) for step in steps}
        ranked = sorted((step for step in steps if math.isfinite(scores[step])), key=scores.__getitem__)
        return kept | set(ranked[: self.best] if self.best_is == "min" else ranked[::-1][: self.best])


@dataclass(frozen=True)
class Facts:
    """When a checkpoint was saved (seconds since 1970), and how good it was."""

    time: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Restored(Generic[S]):
    """What a checkpoint held.

    Attributes:
      step: how many steps were taken.
      state: in place.
      data_states: of all processes' data iterators, in order, as they were handed to `save`.
      config: of the run, its seed included.
    """

    step: int
    state: S
    data_states: Sequence[dict[str, Any]]
    config: dict[str, Any]

    @property
    def data_state(self) -> dict[str, Any]:
        """Of this process' data iterator. From a run of another number of processes it is some process' state: the
        iterator, whose state says so, refuses it.
        """
        return self.data_states[jax.process_index() % len(self.data_states)]

    def was_made_with(self, config: Mapping[str, Any]) -> bool:
        """Whether the run had this config, as json tells them apart: there tuples come back as lists."""
        was, now = (json.dumps(each, sort_keys=True) for each in (self.config, config))
        return was == now


class Checkpoints:
    """The checkpoints in a folder; a context manager, whose end waits for what is being saved.

    Every process takes part in every call. What a killed run left half-written is cleared away at the start.

    Args:
      directory: is made if it is missing.
      keep: which checkpoints stay.

    Raises:
      JanusError: the folder cannot be made or read.
    """

    def __init__(self, directory: str | Path, keep: RetentionPolicy | None = None) -> None:
        self._directory = _absolute(directory)
        self._keep = keep or RetentionPolicy()
        self._facts: dict[int, Facts] = {}
        self._saving: int | None = None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Policy(self._stay),
            # What it would read at the start may be damaged; `_stay` reads what it needs by itself.
            lightweight_initialize=True,
            async_options=ocp.AsyncOptions(timeout_secs=_LONGEST_SAVE, post_finalization_callback=self._finish),
        )
        for logger in _LOGGERS:
            logger.addFilter(_tells_news)
        try:
            # Not by Orbax, which does it in the background: it would still be at it when this run has come and gone.
            self._clear_away()
            _gather({})
            self._manager = _Manager(self._directory, options=options)
        except OSError as error:
            raise JanusError(f"{directory} cannot hold checkpoints ({error.strerror or error}).") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        # What ends the run is told, not what its last save met with.
        with contextlib.suppress(Exception):
            self.close()

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints that are there, the damaged ones that nobody tried to read included."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Any,
        data_state: Mapping[str, Any],
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Begins to save; returns when the state may be given away to the next step. A step already saved is left.

        Args:
          step: how many steps were taken.
          state: a tree of arrays.
          data_state: of this process' data iterator; small, and fit for json.
          config: of the run, its seed included; fit for json.
          metrics: that `RetentionPolicy.best_by` picks from.

        Raises:
          StorageFull: this save, or the one before, found no room. Older checkpoints are as they were.
        """
        if step in self.steps:
            return
        everyones = _gather({"time": time.time(), "data": data_state})
        content = {
            "step": step,
            "time": everyones[0]["time"],
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
            "config": config,
            "data": [one["data"] for one in everyones],
            "arrays": _describe(state),
        }
        with self._room():
            self._manager.wait_until_finished()
            self._facts[step] = Facts(content["time"], content["metrics"])
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        _STATE: ocp.args.StandardSave(state),
                        _RUN: ocp.args.JsonSave(content),
                    }
                ),
                force=True,
            )

    def wait(self) -> None:
        """Waits for what is being saved.

        Raises:
          StorageFull: as `save`.
        """
        with self._room():
            self._manager.wait_until_finished()

    def restore(self, abstract: S) -> Restored[S] | None:
        """The newest checkpoint that is whole; None where there is none at all.

        Damaged ones are reported as warnings and, once a whole one is found, moved to the subfolder `damaged`.

        Args:
          abstract: shapes, dtypes and shardings, on whatever mesh; for a `TrainState` as `abstract_state` gives them.

        Raises:
          JanusError: every checkpoint is damaged, or the newest whole one is of another model.
        """
        damaged: list[int] = []
        for step in reversed(self.steps):
            place = self._directory / str(step)
            try:
                content, state = _read(place, abstract)
            except _DamagedError as error:
                _log.warning("%s is damaged (%s); the checkpoint before it is tried.", place, error)
                damaged.append(step)
                continue
            self._put_aside(damaged)
            return Restored(step, state, content["data"], content["config"])
        if damaged:
            raise JanusError(
                f"{self._directory} has no checkpoint that is whole: {', '.join(map(str, sorted(damaged)))} "
                "are damaged; bring one back from a copy, or begin anew in another folder."
            )
        return None

    def close(self) -> None:
        """As `wait`, and for good."""
        try:
            self.wait()
        finally:
            # What failed in the background while `save` failed is told here.
            with self._room():
                self._manager.close()
            for logger in _LOGGERS:
                logger.removeFilter(_tells_news)

    def _finish(self) -> None:
        # Called in the background of the first process, when all is written and before it gets its name. Object stores
        # know no renaming: there the name is there at once, and what comes last is a file that says it is whole.
        unnamed = list(self._directory.glob(f"{self._saving}{_UNNAMED}*"))
        checksums.write(unnamed[0] if unnamed else self._directory / str(self._saving), (_STATE, _RUN))

    def _stay(self, steps: Sequence[int]) -> list[bool]:
        for step in steps:
            if step not in self._facts:
                self._facts[step] = _read_facts(self._directory / str(step))
        kept = self._keep.chosen({step: self._facts[step] for step in steps})
        return [step in kept for step in steps]

    def _put_aside(self, steps: Sequence[int]) -> None:
        if not steps:
            return
        if jax.process_index() == 0:
            (self._directory / _DAMAGED).mkdir(exist_ok=True)
            for step in steps:
                aside = self._directory / _DAMAGED / str(step)
                if aside.exists():
                    aside.rmtree()
                (self._directory / str(step)).rename(aside)
        _gather({})  # So that nobody looks before it is done.
        self._manager.reload()

    def _clear_away(self) -> None:
        """Removes what has no name yet."""
        if jax.process_index() == 0:
            for part in self._directory.glob(f"*{_UNNAMED}*"):
                with contextlib.suppress(OSError):
                    part.rmtree()

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_disk_full(error):
                raise
            self._clear_away()
            self._manager.reload()
            newest = f"the newest one is that of step {self.steps[-1]}" if self.steps else "there is none before it"
            raise StorageFull(
                f"{self._directory} has no room left for a checkpoint ({newest}); "
                "make room and give the same command again."
            ) from error


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: `Preemption` asks, and of two who ask in the same step just one may be told."""
        return False


@dataclass(frozen=True)
class _Policy:
    stay: Any

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        result: list[bool] = self.stay([checkpoint.step for checkpoint in checkpoints])
        return result


def read_params(directory: str | Path, abstract: Any, *, average: bool = False) -> Any:
    """Parameters out of another run's newest whole checkpoint, be they trained or frozen there.

    Nothing in the folder is touched, so that run may be under way.

    Args:
      directory: that a run with a `TrainState` saved to.
      abstract: shapes, dtypes and shardings of the wanted parameters, without boxes.
      average: whether the moving average is taken, where there is one.

    Raises:
      JanusError: the folder holds no checkpoint that is whole, or one without these parameters.
    """
    branches = ["ema", "params", "frozen"] if average else ["params", "frozen"]
    return _newest(directory, lambda place: _read_part(place, abstract, branches))


def read_config(directory: str | Path) -> dict[str, Any]:
    """The config that another run was saved with; see `read_params`."""
    config: dict[str, Any] = _newest(directory, lambda place: _agreed(lambda: _read_run(place))["config"])
    return config


def saved_steps(directory: str | Path) -> list[int]:
    """Of another run's checkpoints, at least one, and those included that are damaged.

    Raises:
      JanusError: there is none.
    """
    steps = sorted(int(path.name) for path in _absolute(directory).glob("*") if path.name.isdecimal())
    if not steps:
        raise JanusError(f"{directory} holds no checkpoint; name the folder that a run saved its checkpoints to.")
    return steps


def _newest(directory: str | Path, read: Callable[[epath.Path], T]) -> T:
    for step in reversed(saved_steps(directory)):
        place = _absolute(directory) / str(step)
        try:
            return read(place)
        except _DamagedError as error:
            _log.warning("%s is damaged (%s); the checkpoint before it is tried.", place, error)
    raise JanusError(f"{directory} has no checkpoint that is whole; bring one back from a copy.")


# What is in a checkpoint.


def _read(place: epath.Path, abstract: S) -> tuple[dict[str, Any], S]:
    _agreed(lambda: checksums.verify(place, jax.process_index(), jax.process_count()))
    content = _agreed(lambda: _read_run(place))
    _check_arrays(place, content["arrays"], abstract)
    # The handler alone: around it Orbax waits for all processes, and one that met damage never comes.
    handler = ocp.StandardCheckpointHandler()
    return content, _agreed(lambda: handler.restore(place / _STATE, args=ocp.args.StandardRestore(abstract)))


def _read_part(place: epath.Path, abstract: Any, branches: Sequence[str]) -> Any:
    _agreed(lambda: checksums.verify(place, jax.process_index(), jax.process_count()))
    saved = _agreed(lambda: _read_run(place))["arrays"]
    found: dict[str, str] = {}
    leaves: dict[str, Any] = {}

    def seek(name: str, leaf: Any) -> None:
        shape = f"[{','.join(map(str, leaf.shape))}]"
        for branch in branches:
            there = saved.get(f"{branch}/{name}")
            if there is not None:
                if not there.endswith(shape):
                    raise JanusError(f"{place} is of another model: {name} is {there} in it; it must be {shape}.")
                found[name] = f"{branch}/{name}"
                leaves[found[name]] = leaf
                return
        raise JanusError(f"{place} has no parameter {name}; it was trained with another model.")

    map_named(seek, abstract)
    wanted = unflatten_dict(leaves, sep="/")
    handler = ocp.PyTreeCheckpointHandler()
    arguments = ocp.args.PyTreeRestore(
        item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
    )
    read = flatten_dict(_agreed(lambda: handler.restore(place / _STATE, args=arguments)), sep="/")
    return map_named(lambda name, _: read[found[name]], abstract)


def _read_run(place: epath.Path) -> dict[str, Any]:
    content: dict[str, Any] = ocp.JsonCheckpointHandler().restore(place / _RUN)
    return content


def _read_facts(place: epath.Path) -> Facts:
    try:
        content = _read_run(place)
        return Facts(content["time"], content["metrics"])
    except Exception:  # Whatever: it will not be kept for its merits.
        return Facts(-math.inf, {})


def _check_arrays(place: epath.Path, saved: Mapping[str, str], abstract: Any) -> None:
    wanted = _describe(abstract)
    for name in sorted(wanted.keys() | saved.keys()):
        there, here = saved.get(name, "missing"), wanted.get(name, "missing")
        if there != here:
            raise JanusError(
                f"{place} is of another model or recipe: {name} is {there} in it and {here} here; "
                "take the config that it was made with, or begin anew in another folder."
            )


def _describe(state: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {path_name(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in leaves}


# What can go wrong, and what all processes make of it.


class _DamagedError(Exception):
    """A checkpoint cannot be read, in all processes alike."""


def _agreed(read: Callable[[], T]) -> T:
    """What `read` gives.

    Raises:
      _DamagedError: it raised something, here or in another process.
    """
    reason, value = "", None
    try:
        value = read()
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        # Our want of memory is no fault of the file's.
        if any(words in reason for words in _NO_MEMORY_WORDS):
            raise
    reasons = [one["reason"] for one in _gather({"reason": reason})]
    for reason in filter(None, reasons):
        raise _DamagedError(reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…")
    return cast(T, value)


def _tells_news(record: logging.LogRecord) -> bool:
    """Not a full disk: Orbax logs every task that met with it, where `StorageFull` is one sentence."""
    return not is_disk_full(record.exc_info[1] if record.exc_info else None)


def _gather(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every process' value, in order."""
    text = json.dumps(value).encode()
    if jax.process_count() == 1:
        return [json.loads(text)]
    sizes = np.asarray(multihost_utils.process_allgather(np.array(len(text))))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _absolute(directory: str | Path) -> epath.Path:
    return epath.Path(directory if "://" in str(directory) else os.path.abspath(directory))
