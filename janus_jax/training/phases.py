"""Tracks the phase that a process is in, for the watchdog and for goodput."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

PhaseName = Literal["start", "restore", "compile", "data", "barrier", "step", "evaluate", "save"]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)

STEPPING: tuple[PhaseName, ...] = ("data", "barrier", "step")
"""Phases in which the next step must complete within a limit. The other phases have their own limits."""

DESCRIPTIONS: dict[PhaseName, str] = {
    "start": "starting or ending",
    "restore": "restoring or initializing the state",
    "compile": "compiling or running the first step",
    "data": "waiting for its data",
    "barrier": "waiting for the other processes",
    "step": "running the step on its devices",
    "evaluate": "evaluating",
    "save": "saving a checkpoint",
}


@dataclass(frozen=True)
class Moment:
    """Phase and progress of a process.

    Attributes:
      phase: The current phase.
      step: The step that is being taken, counted from 1; 0 before the first one.
      seconds: Time in this phase.
      stalled: Time since the last progress: the last step, or the end of the last phase with a limit of its own.
    """

    phase: PhaseName
    step: int
    seconds: float
    stalled: float


class Phases:
    """Current phase of this process, and the seconds spent in each phase. Any thread may read it.

        with phases("data"):
            batch = next(data)

    Phases can be nested: the seconds count for the inner one. Outside of all `with` blocks the phase is the first one.
    """

    def __init__(self, first: PhaseName = "start") -> None:
        self._lock = threading.Lock()
        self._stack: list[PhaseName] = [first]
        self._seconds: dict[PhaseName, float] = dict.fromkeys(PHASES, 0.0)
        self._step = 0
        self._counted = self._entered = self._progressed = time.monotonic()

    @contextlib.contextmanager
    def __call__(self, phase: PhaseName) -> Iterator[None]:
        """Context manager around a phase."""
        with self._lock:
            self._count()
            self._stack.append(phase)
        try:
            yield
        finally:
            with self._lock:
                self._count()
                self._stack.pop()
                if phase not in STEPPING:
                    self._progressed = self._entered

    def begin_step(self, step: int) -> None:
        """Says that the steps before number `step` are taken."""
        with self._lock:
            self._step, self._progressed = step, time.monotonic()

    def skip(self, seconds: float) -> None:
        """Excludes a time in which the process was stopped (Ctrl-Z) from the times that have a limit."""
        with self._lock:
            self._entered += seconds
            self._progressed += seconds

    def moment(self) -> Moment:
        """Returns the current phase of the process."""
        with self._lock:
            now = time.monotonic()
            return Moment(self._stack[-1], self._step, now - self._entered, now - self._progressed)

    def seconds(self) -> dict[PhaseName, float]:
        """Returns the seconds spent in each phase up to now."""
        with self._lock:
            now = time.monotonic()
            current = self._stack[-1]
            return self._seconds | {current: self._seconds[current] + now - self._counted}

    def _count(self) -> None:
        now = time.monotonic()
        self._seconds[self._stack[-1]] += now - self._counted
        self._counted = self._entered = now
