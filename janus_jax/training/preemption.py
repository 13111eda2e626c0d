"""A notice that the machine is about to be taken away: save and go."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """Listens, while it is entered, for SIGTERM (TPUs and most schedulers) and SIGUSR1 (SLURM's `--signal=USR1@120`).

        with Preemption() as preemption:
            for step in ...:
                ...
                if preemption.reached(step):
                    checkpoints.save(step, ...)
                    checkpoints.wait()
                    raise Preempted(...)

    Among several processes, joined by `jax.distributed.initialize`, one that is told suffices: all are to stop at the
    same step. To be entered in the main thread, after that call.
    """

    def __init__(self) -> None:
        self._told = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            self._before = {number: signal.signal(number, self._tell) for number in SIGNALS}
        else:
            # jax listens for SIGTERM itself, and brings the processes to agree.
            self._before = {signal.SIGUSR1: signal.signal(signal.SIGUSR1, _as_sigterm)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> bool:
        """Whether to save and go now. Every process has to ask at every step, and all are answered alike."""
        if jax.process_count() == 1:
            return self._told
        reached: bool = multihost_utils.reached_preemption_sync_point(step)
        return reached

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = True


def _as_sigterm(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
