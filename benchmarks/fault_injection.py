"""Runs `janus-train` in forked processes and lets one of them fail at a chosen step; see `fault_runs.Cluster`.

When the fault happens, its time is written to the file `mark`.
"""

import errno
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
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
    "disk_error",
)
"""SIGKILL, SIGSTOP, data that stop or take seconds, SIGKILL to process 0 or in a phase, and errors of the storage."""
BUCKET_KINDS = ("bucket_error",)
"""Kinds that happen to a run on a bucket. Another part of the benchmark makes the requests of the process fail."""


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
        seconds, steps = (1e6, 1) if fault.kind == "loader_sleeps" else (4.0, 10)
        wait = _Wait(fault, seconds, steps)
        _before(Stream, "__next__", wait)
    elif fault.kind == "bucket_error":
        _before(Console, "stepping", lambda self, step: fault.happens() if step == fault.step else None)
    else:
        reason = errno.ENOSPC if fault.kind == "disk_full" else errno.EIO

        def fail(step: int) -> None:
            if step >= fault.step:
                fault.happens()
                raise OSError(reason, os.strerror(reason), f"{step}/state")

        if fault.delay == 0:
            _before(checkpointing._Manager, "save", lambda self, step, *_: fail(step))
        else:
            _fail_in_background(fail)


def _fail_in_background(fail: Callable[[int], None]) -> None:
    """Calls `fail` with the step of each save, in the thread that finishes it."""
    import orbax.checkpoint as ocp  # type: ignore[import-untyped]

    original = ocp.PyTreeCheckpointHandler.async_save

    async def async_save(self: Any, directory: Any, *arguments: Any, **named: Any) -> Any:
        futures = await original(self, directory, *arguments, **named)
        path = str(getattr(directory, "path", directory))
        (step,) = re.findall(r"/(\d+)[^/]*/[^/]*$", path)
        return [*futures, _Failing(lambda: fail(int(step)))]

    ocp.PyTreeCheckpointHandler.async_save = async_save


@dataclass
class _Failing:
    """A future of Orbax whose result is that of a function."""

    result_of: Callable[[], None]

    def result(self, timeout: float | None = None) -> None:
        self.result_of()


def _retry_briefly() -> None:
    """Makes requests to a bucket fail after seconds; by default they are repeated for minutes."""
    import gcsfs.retry
    from orbax.checkpoint._src.serialization import tensorstore_utils  # type: ignore[import-untyped]

    from janus_jax import buckets

    buckets.RETRY_SECONDS = 5.0
    gcsfs.retry.min = lambda *_: 0
    for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
        context["gcs_request_retries"] = {"max_retries": 2}


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
    """Runs jobs until the standard input ends. Reads a JSON line for each job; prints exit codes and end times."""
    import janus_jax.training.stage  # noqa: F401
    from janus_jax.commands.train import run

    sys.modules["torch"] = None  # type: ignore[assignment]  # TensorBoard's writer would import it for seconds.
    import tensorboardX  # noqa: F401

    _retry_briefly()
    # A job in a fork leaves this loop through the exception that ends the command.
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        fault = Fault(**job["fault"]) if job["fault"] else None
        pids: list[int] = []
        for index, log in enumerate(job["logs"]):
            pid = os.fork()
            if pid == 0:
                _redirect(log)
                own = {"JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(index)}
                os.environ.update(own | job["environments"][index])
                if fault is not None and fault.process == index:
                    inject(fault)
                sys.argv = ["janus-train", "--distributed", *job["arguments"]]
                run()
            pids.append(pid)
        spare = 1 if fault is not None and fault.kind == "stop" else 0
        print(json.dumps(_wait(pids, time.time() + job["timeout"], spare)), flush=True)


def _redirect(log: str) -> None:
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        os.dup2(os.open(path, flags), number)
    os.dup2(1, 2)
    # A background shell ignores SIGINT, and its children inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _wait(pids: Sequence[int], deadline: float, spare: int) -> list[tuple[int, float]]:
    """Returns exit code and time for each process. Kills the last `spare` ones, and all after the deadline."""
    ends: dict[int, tuple[int, float]] = {}
    parent = os.getppid()
    while len(ends) < len(pids):
        if len(ends) == len(pids) - spare or time.time() > deadline or os.getppid() != parent:
            for pid in set(pids) - ends.keys():
                os.kill(pid, signal.SIGKILL)
        for pid in set(pids) - ends.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                ends[pid] = os.waitstatus_to_exitcode(status), time.time()
        time.sleep(0.05)
    return [ends[pid] for pid in pids]


if __name__ == "__main__":
    # absl's flags belong to `__main__`, as in the command.
    main()
