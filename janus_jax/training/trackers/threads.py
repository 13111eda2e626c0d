"""Runs each tracker in a separate thread, so that a tracker that blocks or fails neither slows nor stops the run."""

import queue
import threading
import time
from collections.abc import Callable, Mapping

from janus_jax.training.trackers.base import TrackedRun, Tracker

Call = Callable[[Tracker], None]

_MAX_WAITING = 1000  # calls per tracker
_FINISH_SECONDS = 60.0


class TrackerThreads:
    """Passes calls to trackers, in order, and returns at once.

    Each tracker prints at most one warning: if it fails, if it is too slow, or if it does not finish in time.

    Args:
      trackers: Trackers by name.
      run: The run that they show.
    """

    def __init__(self, trackers: Mapping[str, type[Tracker]], run: TrackedRun) -> None:
        self._threads = [_TrackerThread(name, tracker, run) for name, tracker in trackers.items()]

    def put(self, call: Call) -> None:
        """Calls each tracker later."""
        for thread in self._threads:
            thread.put(call)

    def finish(self, succeeded: bool, seconds: float = _FINISH_SECONDS) -> None:
        """Waits until all trackers are finished, at most for some seconds. See `Tracker.finish`."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.finish(succeeded, deadline)
        for thread in self._threads:
            thread.join(deadline, seconds)


class _TrackerThread:
    def __init__(self, name: str, tracker: type[Tracker], run: TrackedRun) -> None:
        self._name, self._message = name, run.message
        self._calls: queue.Queue[Call | None] = queue.Queue(_MAX_WAITING)
        self._has_warned = self._has_ended = False
        # A daemon, because the process must not wait for a tracker that hangs.
        self._thread = threading.Thread(target=self._work, args=(tracker, run), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, call: Call) -> None:
        if self._has_ended:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._warn(f"is {_MAX_WAITING:,} calls behind; it misses the following ones until it catches up")

    def finish(self, succeeded: bool, deadline: float) -> None:
        for call in (lambda tracker: tracker.finish(succeeded), None):
            try:
                while not self._has_ended:
                    self._calls.put(call, timeout=max(deadline - time.monotonic(), 0))
                    break
            except queue.Full:
                return

    def join(self, deadline: float, seconds: float) -> None:
        self._thread.join(max(deadline - time.monotonic(), 0))
        if self._thread.is_alive():
            self._warn(f"has not finished after {seconds:.0f} s; the run ends without it")

    def _work(self, make: type[Tracker], run: TrackedRun) -> None:
        # Packages for trackers also raise SystemExit.
        try:
            tracker = make()
            tracker.start(run)
        except (Exception, SystemExit) as error:
            self._has_ended = True
            self._warn(f"cannot start ({_one_line(error)}); the run continues without it")
            return
        while (call := self._calls.get()) is not None:
            try:
                call(tracker)
            except (Exception, SystemExit) as error:
                self._warn(f"has failed ({_one_line(error)}); the run continues, further failures are not reported")
        self._has_ended = True

    def _warn(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._message(f"Warning: the tracker {self._name} {text}.")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
