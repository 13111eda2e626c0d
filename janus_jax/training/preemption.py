"""Detects that the machine is about to be preempted."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """Context manager that listens for SIGTERM (TPUs, most schedulers) and SIGUSR1 (SLURM's `--signal=USR1@120`).

        with Preemption() as preemption:
            for step in ...:
                ...
                if preemption.reached(step):
                    checkpoints.save(step, ...)
                    checkpoints.wait()
                    raise Preempted(...)

    With several processes, a signal to one of them stops all at the same step. Enter it in the main thread, after
    `jax.distributed.initialize`.
    """

    def __init__(self) -> None:
        self._received = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        else:
            # jax handles SIGTERM itself and synchronizes the processes.
            self._previous = {signal.SIGUSR1: signal.signal(signal.SIGUSR1, _send_sigterm)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> bool:
        """Returns whether to save and stop now. Every process calls it at every step and gets the same result."""
        if jax.process_count() == 1:
            return self._received
        reached: bool = multihost_utils.reached_preemption_sync_point(step)
        return reached

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True


def _send_sigterm(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
