"""Keeps the processes of a run informed about each other, in a thread.

Every process publishes a count that it raises at intervals, with its phase and its step. Process 0 reports a process
whose count no longer changes: that process is stopped, dead or unreachable. Every process looks for such a report, and
for failures that other processes report.
"""

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax

from janus_jax import coordination
from janus_jax.errors import ExitCode
from janus_jax.training.phases import DESCRIPTIONS, Phases

_NAME = "process"
_STOPPED_SECONDS = 10.0
_INTERVALS = 12  # in the time after which a process is lost


class Peers:
    """The thread.

    Args:
      phases: What this process is doing.
      lost_after: Seconds without a sign of life after which a process is lost.

    Attributes:
      interval: Seconds between two signs of life.
      failure: Exit code and message of a failure of the run that a process has reported.
      table: What the processes have published; only process 0 keeps it up to date.
    """

    def __init__(self, phases: Phases, lost_after: float) -> None:
        self._phases, self._lost_after = phases, lost_after
        self.interval = lost_after / _INTERVALS
        self.failure: tuple[int, str] | None = None
        self.table: dict[int, dict[str, Any]] = {}
        self._changed: dict[int, tuple[int, float]] = {}
        self._answered = time.monotonic()
        self._table_is_wanted, self._table_is_read = threading.Event(), threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread, and publishes that this process has ended normally."""
        self._stop.set()
        self._thread.join(self.interval)
        if not self._thread.is_alive():
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                coordination.publish(_NAME, {"ended": True})

    @property
    def unanswered(self) -> float:
        """Seconds since process 0 has answered last."""
        return time.monotonic() - self._answered

    def read(self, timeout: float) -> Mapping[int, Mapping[str, Any]]:
        """Returns the last published values by process; none if process 0 does not answer in time."""
        self._table_is_read.clear()
        self._table_is_wanted.set()
        return self.table if self._table_is_read.wait(timeout) else {}

    def resume(self) -> None:
        """Forgets when the others last gave a sign of life, because this process was stopped since then."""
        self._answered = time.monotonic()
        self._changed = {}

    def _run(self) -> None:
        count = 0
        while (stopped := wait(self._stop, self.interval if count else 0)) is not None:
            if stopped:
                self.resume()
            count += 1
            # An error means that the service is gone. jax then aborts the process, see `coordination.explain_aborts`.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                moment = self._phases.moment()
                state = {"count": count, "phase": moment.phase, "step": moment.step, "seconds": moment.seconds}
                coordination.publish(_NAME, state)
                # Reading the values of all processes is left to the first one: there may be thousands.
                if coordination.process_index() == 0 or self._table_is_wanted.is_set():
                    self._table_is_wanted.clear()
                    self.table = coordination.published(_NAME)
                    self._table_is_read.set()
                if coordination.process_index() == 0:
                    self._report_lost()
                self.failure = self.failure or coordination.reported_failure()
                self._answered = time.monotonic()

    def _report_lost(self) -> None:
        now = time.monotonic()
        for index, state in self.table.items():
            if state.get("ended"):
                self._changed.pop(index, None)
            elif index not in self._changed or self._changed[index][0] != state["count"]:
                self._changed[index] = state["count"], now
        lost = [index for index, (_, changed) in self._changed.items() if now - changed > self._lost_after]
        if lost:
            what = describe_state(self.table[lost[0]])
            message = (
                f"{coordination.describe_processes(lost)} of {coordination.process_count()} gave no sign of life for "
                f"{self._lost_after:.0f} s (last {what}); its machine or the process has died or hangs. Repeat the "
                f"command."
            )
            coordination.report_failure(ExitCode.STALLED, message)


def wait(event: threading.Event, seconds: float) -> float | None:
    """Waits for an event.

    Returns:
      None if the event has happened; otherwise the seconds for which the whole process was stopped, or 0.
    """
    begin = time.monotonic()
    if event.wait(seconds):
        return None
    excess = time.monotonic() - begin - seconds
    return excess if excess > _STOPPED_SECONDS else 0.0


def describe_state(state: Mapping[str, Any]) -> str:
    """Returns a phrase that describes the published value of a process."""
    return f"at step {state['step']}, {DESCRIPTIONS[state['phase']]} for {state['seconds']:.0f} s"


def late_processes(table: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """Returns the processes for which the others wait.

    These are the ones at the earliest step, and among them those that neither wait for others nor for their devices,
    where a collective waits for others.

    Args:
      table: What the processes have published.
    """
    running = {index: state for index, state in table.items() if "phase" in state}
    if not running:
        return []
    first = min(state["step"] for state in running.values())
    earliest = {index: state for index, state in running.items() if state["step"] == first}
    if len(earliest) == len(running):
        busy = [index for index, state in earliest.items() if state["phase"] not in ("barrier", "step", "compile")]
        if not busy:
            busy = [index for index, state in earliest.items() if state["phase"] != "barrier"]
        return sorted(busy) if len(busy) < len(running) else []
    return sorted(earliest)
