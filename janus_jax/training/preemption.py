"""Detects that a run must save and stop, because the machine is about to be preempted or the user pressed Ctrl-C."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

import jax
from jax.experimental import multihost_utils

from janus_jax.coordination import combine, has_preemption_service
from janus_jax.errors import ExitCode, Interrupted, Preempted, RunStopped

_PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)
_NOTICE = "Ctrl-C: the run saves a checkpoint after this step and stops. Press Ctrl-C again to stop at once."


class Preemption:
    """Context manager that listens for SIGTERM, SIGUSR1 and SIGINT.

    SIGTERM comes from TPUs and most schedulers, SIGUSR1 from SLURM with `--signal=USR1@120`, SIGINT from Ctrl-C.

        with Preemption() as preemption:
            for step in ...:
                ...
                if preemption.reached(step):
                    checkpoints.save(step, ...)
                    checkpoints.wait()
                    raise preemption.stopped(step)

    With several processes, a signal to one of them stops all at the same step. A second SIGINT ends the process that
    receives it at once, even while it compiles or waits for a device. If jax's preemption service is off, several
    processes cannot agree on a step, and a signal ends the process. Enter the context in the main thread, after
    `jax.distributed.initialize`.

    Args:
      notify: Prints a notice for the user. Called from another thread.
    """

    def __init__(self, notify: Callable[[str], None] = print) -> None:
        self._notify = notify
        self._received = self._interrupted = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for number in (*_PREEMPTION, signal.SIGINT):
                # jax handles SIGTERM itself and synchronizes the processes. A process in the background of a shell
                # ignores SIGINT.
                is_handled = number is signal.SIGTERM and jax.process_count() > 1
                if not is_handled and signal.getsignal(number) is not signal.SIG_IGN:
                    stack.callback(signal.signal, number, signal.signal(number, self._receive))
            stack.enter_context(_SignalThread(self._on_signal))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def reached(self, step: int) -> bool:
        """Returns whether to save and stop now. Every process calls it at every step and gets the same result."""
        if jax.process_count() == 1:
            return self._received
        if not has_preemption_service():
            return False
        reached: bool = multihost_utils.reached_preemption_sync_point(step)
        return reached

    def stopped(self, step: int) -> RunStopped:
        """Returns the exception to raise after saving: `Interrupted` or `Preempted`. Every process must call it.

        All processes get the same type.
        """
        if combine("stop", {"is": self._interrupted}, lambda processes: any(one["is"] for one in processes)):
            return Interrupted(f"Interrupted at step {step}; a checkpoint is saved. Repeat the command to continue.")
        return Preempted(f"Preempted at step {step}; a checkpoint is saved. Repeat the command to continue.")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        self._interrupted |= number == signal.SIGINT
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def _on_signal(self, number: int, count: int) -> None:
        if number != signal.SIGINT:
            return
        if count == 1:
            self._notify(_NOTICE)
        else:
            os._exit(ExitCode.INTERRUPTED)


class _SignalThread:
    """Context manager that calls a function in a thread for each signal that has a handler.

    Python runs the handlers in the main thread, and only after compiled code has returned.

    Args:
      on_signal: Called with the signal's number and the number of times that it has arrived.
    """

    def __init__(self, on_signal: Callable[[int, int], None]) -> None:
        self._on_signal = on_signal
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._previous = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _run(self) -> None:
        counts: dict[int, int] = {}
        while received := os.read(self._read, 1):
            counts[received[0]] = counts.get(received[0], 0) + 1
            with contextlib.suppress(Exception):
                self._on_signal(received[0], counts[received[0]])
