"""Starts grain's data workers, and reads from them such that a dead worker never blocks the caller."""

import atexit
import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from absl import flags

from janus_jax.errors import ExitCode, JanusError

T = TypeVar("T")

_WORKER_NAME = "grain-process-prefetch"
_GRAIN_MESSAGE = "Worker process was terminated unexpectedly"
_POLL_SECONDS = 1.0
# Time for grain to notice a dead worker, which takes it about a second.
_GRACE_SECONDS = 8.0
_CLOSE_SECONDS = 30.0


def prepare_main_process() -> None:
    """Prepares the process that will start workers."""
    # grain reads its flags, which only a command parses.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # Python's resource tracker removes the shared memory of killed workers. Its warning would follow the error message.
    with _variable("PYTHONWARNINGS", "ignore:resource_tracker"):
        resource_tracker.ensure_running()


def safe_path() -> contextlib.AbstractContextManager[None]:
    """Returns a context in which files in the working folder hide no modules from the processes that are started."""
    return _variable("PYTHONSAFEPATH", "1")


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Context in which processes start with an environment variable."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def start_worker(index: int, count: int) -> None:
    """Prepares a worker process. grain calls this function in each worker before it reads.

    Args:
      index: Index of the worker.
      count: Number of workers.
    """
    # Interrupts and preemption notices are sent to workers, too. Only the main process handles them, and it needs its
    # workers until it ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # grain imports jax. A worker must not take memory of an accelerator.
    os.environ["JAX_PLATFORMS"] = "cpu"
    # A worker encodes one text at a time.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    threading.Thread(target=_exit_with_parent, name="parent watch", daemon=True).start()


def _exit_with_parent() -> None:
    # A killed parent cannot end its workers.
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(ExitCode.INTERNAL_ERROR)


class WorkerWatch:
    """Calls functions that wait for data workers. A call raises a `JanusError` soon after a worker has died.

    The functions run in a thread. It may remain blocked if a worker was killed while it held one of grain's locks; the
    caller is not.
    """

    def __init__(self) -> None:
        self._workers: set[BaseProcess] = set()
        self._died_at: float | None = None
        self._calls: queue.SimpleQueue[tuple[futures.Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="data reader", daemon=True).start()

    def call(self, function: Callable[[], T]) -> T:
        """Returns the result of a function.

        Raises:
          JanusError: A worker process has ended.
        """
        future = self._submit(function)
        while not futures.wait([future], _POLL_SECONDS).done:
            if self._dead() and time.monotonic() - (self._died_at or 0) > _GRACE_SECONDS:
                raise self._death()
        self._dead()
        try:
            return future.result()
        except RuntimeError as error:
            if _GRAIN_MESSAGE in str(error):
                raise self._death() from error
            raise

    def close(self, function: Callable[[], None]) -> None:
        """Calls a function that ends the workers, and ends them itself if that does not succeed in time."""
        future = self._submit(function)
        if not futures.wait([future], _GRACE_SECONDS if self._dead() else _CLOSE_SECONDS).done:
            for worker in self._workers:
                worker.kill()
            if not futures.wait([future], _GRACE_SECONDS).done:
                # The thread remains blocked, and the interpreter would wait for it.
                atexit.register(_exit_at_once)
                return
        self._calls.put(None)
        with contextlib.suppress(RuntimeError):  # The error that ends the run is reported.
            future.result()

    def _submit(self, function: Callable[[], T]) -> "futures.Future[T]":
        future: futures.Future[T] = futures.Future()
        self._calls.put((future, function))
        return future

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            try:
                with safe_path():  # For workers that the function starts.
                    result = function()
                future.set_result(result)
            except BaseException as error:
                future.set_exception(error)

    def _dead(self) -> list[BaseProcess]:
        """Returns the workers that have ended with an error."""
        self._workers |= {child for child in multiprocessing.active_children() if child.name.startswith(_WORKER_NAME)}
        dead = [worker for worker in self._workers if worker.exitcode]
        if dead and self._died_at is None:
            self._died_at = time.monotonic()
        return dead

    def _death(self) -> JanusError:
        which, how = "", "unexpectedly"
        if dead := self._dead():
            code = dead[0].exitcode or 0
            which = f" (process {dead[0].pid})"
            how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with code {code}"
        return JanusError(
            f"A data worker{which} has ended {how}; check its messages above and the machine's memory, then start "
            f"again from the last checkpoint."
        )


def _exit_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ExitCode.USER_ERROR)
