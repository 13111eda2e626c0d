"""Accounts for every second of a run, across its restarts.

    WORKDIR/stage_N/goodput/0001.json   the first start of the run, and so on; process 0 writes them

Goodput is the share of the time in which the run takes steps that it keeps. The rest of the time goes to the phases in
`training.phases`, to steps that a later start repeats ("lost"), and to the time between two starts ("down").
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from janus_jax import coordination
from janus_jax.errors import JanusError
from janus_jax.storage import write_json
from janus_jax.training.phases import PHASES, Phases

_FOLDER = "goodput"
_WRITE_SECONDS = 10.0
_LOST, _DOWN = "lost", "down"
_NAMES = {
    "step": "steps",
    _LOST: "steps that were repeated",
    "start": "start, end",
    "restore": "restore, initialization",
    "compile": "compilation, first step",
    "data": "waiting for data",
    "barrier": "waiting for other processes",
    "save": "checkpoints",
    "evaluate": "evaluation, samples",
    _DOWN: "between starts",
}
_HIT, _MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"

_command_started: list[float] = []  # Start of this process, until the first run of the process uses it.
_cache_events: dict[str, int] = {}


@dataclass
class Start:
    """One start of a run.

    Attributes:
      started: Seconds since the epoch.
      first_step: Steps that earlier starts had taken; None if the start ended before it had restored or initialized the
        state.
      ended: Time of the last update.
      step: Steps taken.
      seconds: Seconds by phase. Their sum is `ended - started`.
      saved: For each checkpoint, the seconds in the phase "step" before it, by step.
      to_first_step: Seconds from the start to the result of the first step; None if there is none yet.
      is_warm: Whether the programs up to the first step came from the compilation cache.
    """

    started: float
    first_step: int | None = None
    ended: float = 0.0
    step: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    saved: dict[str, float] = field(default_factory=dict)
    to_first_step: float | None = None
    is_warm: bool = False


class Goodput:
    """Context manager that records a start of the run at intervals, in a thread of process 0.

    Args:
      phases: What the process is doing.
      folder: Folder of the run.
    """

    def __init__(self, phases: Phases, folder: Path) -> None:
        self._phases, self._folder = phases, folder / _FOLDER
        begin = _command_started.pop() if _command_started else time.time()
        self._before = time.time() - begin
        self._earlier = read_starts(folder)
        self._start = Start(begin)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._is_writer = coordination.process_index() == 0
        self._thread = threading.Thread(target=self._run, name="goodput", daemon=True)
        if not _cache_events:
            _cache_events.update({_HIT: 0, _MISS: 0})
            jax.monitoring.register_event_listener(_count_cache_event)
        self._misses, self._hits = _cache_events[_MISS], _cache_events[_HIT]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            self._write()

    def resumed(self, step: int) -> None:
        """Says after how many steps this start begins."""
        self._start.first_step = self._start.step = step

    def took(self, step: int) -> None:
        """Says how many steps are taken."""
        with self._lock:
            self._start.step = step
            if self._start.to_first_step is None:
                self._start.to_first_step = time.time() - self._start.started
                misses, hits = _cache_events[_MISS] - self._misses, _cache_events[_HIT] - self._hits
                self._start.is_warm = hits > 0 and misses == 0

    def saved(self, step: int) -> None:
        """Says that a checkpoint of this step is being saved."""
        with self._lock:
            self._start.saved[str(step)] = self._phases.seconds()["step"]

    def shares(self) -> dict[str, float]:
        """Returns goodput, and `goodput/PART` for the other parts of the time since the run was first started."""
        spent = time_spent([*self._earlier, self._current()])
        total = max(sum(spent.values()), 1e-9)
        parts = {f"goodput/{part}": seconds / total for part, seconds in spent.items() if part != "step"}
        return {"goodput": spent["step"] / total} | parts

    def summary(self) -> str:
        """Returns one line about the whole run."""
        return summarize([*self._earlier, self._current()])

    def _current(self) -> Start:
        with self._lock:
            seconds = dict[str, float](self._phases.seconds().items())
            seconds["start"] += self._before
            self._start.seconds, self._start.ended = seconds, self._start.started + sum(seconds.values())
            return self._start

    def _run(self) -> None:
        while not self._stop.wait(_WRITE_SECONDS):
            # The run itself reports a full disk.
            with contextlib.suppress(Exception):
                self._write()

    def _write(self) -> None:
        if self._is_writer:
            write_json(self._folder / f"{len(self._earlier) + 1:04d}.json", asdict(self._current()))


def count_from_process_start() -> None:
    """Counts the time since this process was started for the next run in it."""
    with contextlib.suppress(OSError):
        _command_started[:] = [os.stat(f"/proc/{os.getpid()}").st_ctime]


def read_starts(folder: Path) -> list[Start]:
    """Returns the recorded starts of a run, without unreadable ones.

    Args:
      folder: Folder of the run.
    """
    starts = []
    for file in sorted((folder / _FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            starts.append(Start(**json.loads(file.read_text())))
    return starts


def time_spent(starts: Sequence[Start]) -> dict[str, float]:
    """Returns the seconds of a run by phase, of lost steps and between the starts. Their sum is its duration."""
    spent: dict[str, float] = dict.fromkeys([*PHASES, _LOST, _DOWN], 0.0)
    for number, start in enumerate(starts):
        later = starts[number + 1 :]
        for phase, seconds in start.seconds.items():
            spent[phase] += seconds
        resumed = [one.first_step for one in later if one.first_step is not None]
        lost = _lost_seconds(start, min(resumed, default=start.step))
        spent["step"] -= lost
        spent[_LOST] += lost
        if later:
            spent[_DOWN] += max(later[0].started - start.ended, 0.0)
    return spent


def _lost_seconds(start: Start, kept: int) -> float:
    """Returns the seconds in steps after step number `kept`."""
    if kept >= start.step:
        return 0.0
    before = max((one for step, one in start.saved.items() if int(step) <= kept), default=0.0)
    return start.seconds["step"] - before


def summarize(starts: Sequence[Start]) -> str:
    """Returns one line about a run: duration, goodput and the three largest other parts."""
    spent = time_spent(starts)
    total = max(sum(spent.values()), 1e-9)
    rest = sorted(((seconds, part) for part, seconds in spent.items() if part != "step"), reverse=True)[:3]
    parts = ", ".join(f"{_NAMES[part]} {seconds / total:.1%}" for seconds, part in rest if seconds)
    number = "1 start" if len(starts) == 1 else f"{len(starts)} starts"
    return f"goodput: {spent['step'] / total:.1%} of {_duration(total)} in {number}; {parts}"


def report(workdir: Path) -> str:
    """Returns tables of all runs in a workdir: time by part, and the starts.

    Raises:
      JanusError: The workdir has no run.
    """
    runs = {folder: read_starts(folder) for folder in [workdir, *sorted(workdir.glob("stage_*"))]}
    tables = [_tables(folder, starts) for folder, starts in runs.items() if starts]
    if not tables:
        raise JanusError(f"{workdir} has no {_FOLDER} folder; give the workdir of a run of janus-train.")
    return "\n\n".join(tables)


def _tables(folder: Path, starts: Sequence[Start]) -> str:
    spent = time_spent(starts)
    total = max(sum(spent.values()), 1e-9)
    lines = [f"{folder}: {summarize(starts)}", "", f"{'part':<28}  {'time':>12}   share"]
    lines += [f"{name:<28}  {_duration(spent[part]):>12}  {spent[part] / total:>6.1%}" for part, name in _NAMES.items()]
    lines += [f"{'all':<28}  {_duration(total):>12}  {1:>6.1%}", ""]
    lines.append("start  at                   steps              time to first step  programs  duration")
    for number, start in enumerate(starts, 1):
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(start.started))
        steps = "-" if start.first_step is None else f"{start.first_step:,} to {start.step:,}"
        first = "-" if start.to_first_step is None else _duration(start.to_first_step)
        programs = "-" if start.to_first_step is None else "cached" if start.is_warm else "compiled"
        duration = _duration(start.ended - start.started)
        lines.append(f"{number:>5}  {at}  {steps:<17}  {first:>18}  {programs:<8}  {duration}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _count_cache_event(event: str, **_: Any) -> None:
    if event in _cache_events:
        _cache_events[event] += 1
