"""Runs `janus-train` and lets one process of a cluster fail at a chosen step; `benchmarks.faults` starts it.

    python -m benchmarks.fault_injection --config ... --workdir ... --distributed

The environment variable JANUS_FAULT holds the JSON values of a `Fault`; without it nothing fails. When the fault
happens, its time is written to the file `mark`.
"""

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = (
    "kill",
    "stop",
    "loader_sleeps",
    "loader_crawls",
    "coordinator_killed",
    "kill_in_compile",
    "kill_in_restore",
    "kill_in_save",
    "bucket_error",
    "disk_full",
)
"""SIGKILL, SIGSTOP, data that stop or take seconds, SIGKILL to process 0 or in a phase, and errors in writing."""


@dataclass(frozen=True)
class Fault:
    """A fault of one process.

    Attributes:
      kind: One of `KINDS`.
      process: Index of the process.
      step: Step at which it happens, for the kinds that happen in a step.
      delay: Seconds from the start of the phase, for the kinds that happen in a phase; else within the step.
      mark: File for the time of the fault.
    """

    kind: str
    process: int
    step: int
    delay: float
    mark: str

    def happens(self) -> None:
        """Writes the time of the fault, if this is the first time."""
        if not Path(self.mark).exists():
            Path(self.mark).write_text(str(time.time()))


def inject(fault: Fault) -> None:
    """Replaces functions of this process so that the fault will happen."""
    from janus_jax.data.pipeline.stream import Stream
    from janus_jax.training import checkpoint_files, checkpointing
    from janus_jax.training.console import Console

    def end(number: int) -> None:
        fault.happens()
        os.kill(os.getpid(), number)

    if fault.kind in ("kill", "stop", "coordinator_killed"):
        number = signal.SIGSTOP if fault.kind == "stop" else signal.SIGKILL
        _before(
            Console, "stepping", lambda self, step: _later(fault.delay, end, number) if step == fault.step else None
        )
    elif fault.kind == "kill_in_compile":
        # The first step of a run compiles.
        is_first = iter([True])
        _before(Console, "stepping", lambda *_: _later(fault.delay, end, signal.SIGKILL) if next(is_first, 0) else None)
    elif fault.kind == "kill_in_restore":
        _before(checkpoint_files, "_verify_checksums", lambda *_: _later(fault.delay, end, signal.SIGKILL))
    elif fault.kind == "kill_in_save":
        _before(
            checkpointing._Manager,
            "save",
            lambda self, step, *_: _later(fault.delay, end, signal.SIGKILL) if step >= fault.step else None,
        )
    elif fault.kind in ("loader_sleeps", "loader_crawls"):
        seconds, steps = (1e6, 1) if fault.kind == "loader_sleeps" else (4.0, 6)
        wait = _Wait(fault, seconds, steps)
        _before(Stream, "__next__", wait)
    else:
        reason = errno.ENOSPC if fault.kind == "disk_full" else errno.EIO

        def fail(step: int, *_: Any) -> None:
            if step >= fault.step:
                fault.happens()
                raise OSError(reason, os.strerror(reason), f"{step}/state")

        _before(checkpointing._Manager, "save", lambda self, step, *_: fail(step))


class _Wait:
    def __init__(self, fault: Fault, seconds: float, steps: int) -> None:
        self._fault, self._seconds, self._steps, self._calls = fault, seconds, steps, 0

    def __call__(self, *_: Any) -> None:
        self._calls += 1
        if self._fault.delay <= self._calls < self._fault.delay + self._steps:
            self._fault.happens()
            time.sleep(self._seconds)


def _before(owner: Any, name: str, action: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    def replaced(*arguments: Any, **named: Any) -> Any:
        action(*arguments)
        return original(*arguments, **named)

    setattr(owner, name, replaced)


def _later(seconds: float, action: Callable[..., None], *arguments: Any) -> None:
    if seconds == 0:
        action(*arguments)
    else:
        threading.Timer(seconds, action, arguments).start()


def main() -> None:
    """Runs the command with the fault."""
    if text := os.environ.get("JANUS_FAULT"):
        fault = Fault(**json.loads(text))
        if fault.process == int(os.environ["JAX_PROCESS_ID"]):
            inject(fault)
    from janus_jax.commands.train import run

    sys.argv[0] = "janus-train"
    run()


if __name__ == "__main__":
    # absl's flags belong to `__main__`, as in the command.
    main()
