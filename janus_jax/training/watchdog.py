"""Ends a run that is stuck, with a sentence that names the process, the Python stacks of all threads and a retryable
exit code.

    WORKDIR/stage_N/stalls/TIME.process_P.txt   stacks of a process that was ended
"""

import contextlib
import faulthandler
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import jax

from janus_jax import coordination
from janus_jax.errors import ExitCode, Interrupted, JanusError, Preempted, RunStopped, Stalled
from janus_jax.storage import failed_disk, is_disk_full, write_bytes
from janus_jax.training.config_dicts import check_values
from janus_jax.training.peers import Peers, describe_state, late_processes, wait
from janus_jax.training.phases import DESCRIPTIONS, STEPPING, Moment, PhaseName, Phases

_log = logging.getLogger(__name__)

_CHECK_SECONDS = 0.5
_LATE_SECONDS = 30.0
_GRACE_SECONDS = 5.0  # for processes that fail together to report it themselves
_WRITE_SECONDS = 60.0
_STDERR = 2
_COMMUNICATION = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "onnection")
"""Words in the errors of collective operations."""


@dataclass(frozen=True)
class Limits:
    """Times after which a run is stuck. Such a run ends with exit code 76, and the same command resumes it.

    Attributes:
      watchdog_minutes: Time without a completed step. Here and in the next four fields 0 means no limit.
      compile_minutes: Time of the first step, which compiles.
      restore_minutes: Time to start, and to restore or initialize the state.
      save_minutes: Time that a save delays the steps.
      evaluate_minutes: Time of all evaluations after a step.
      lost_seconds: Time without a sign of life from a process of a cluster.
      step_barrier: Whether the processes of a cluster wait for each other before each step. A process without data then
        delays the others here, where they can name it, instead of in a collective operation of their devices.
    """

    watchdog_minutes: float = 15.0
    compile_minutes: float = 60.0
    restore_minutes: float = 60.0
    save_minutes: float = 60.0
    evaluate_minutes: float = 240.0
    lost_seconds: float = 120.0
    step_barrier: bool = True

    def __post_init__(self) -> None:
        names = ("watchdog", "compile", "restore", "save", "evaluate")
        check_values(
            self,
            "config.resources",
            # jax itself aborts the processes after `distributed.HEARTBEAT_SECONDS`.
            ("lost_seconds", 1 <= self.lost_seconds <= 240, "from 1 to 240"),
            **{f"{name}_minutes": 0 for name in names},
        )

    def seconds(self, phase: PhaseName) -> float:
        """Returns the limit of a phase."""
        minutes = {
            "start": self.restore_minutes,
            "restore": self.restore_minutes,
            "compile": self.compile_minutes,
            "save": self.save_minutes,
            "evaluate": self.evaluate_minutes,
        }.get(phase, self.watchdog_minutes)
        return minutes * 60 or math.inf


class Watchdog:
    """Context manager of a thread that ends the process if it is stuck or if another process has failed.

    The thread ends the process at once, because the main thread may wait for a device forever.

    Args:
      phases: What this process is doing.
      limits: When it is stuck.
      folder: Folder of the run.
    """

    def __init__(self, phases: Phases, limits: Limits, folder: Path) -> None:
        self._phases, self._limits, self._folder = phases, limits, folder
        self._peers = Peers(phases, limits.lost_seconds) if coordination.is_joined() else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._logged_step = -1
        self._error: BaseException | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._peers:
            self._peers.start()
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, _suspend)
            self._stack.callback(signal.signal, signal.SIGTSTP, signal.SIG_DFL)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._stack.close()
        if self._peers:
            self._peers.stop()

    def report(self, error: BaseException) -> Stalled | None:
        """Reports to the other processes that this one fails. Must be called before this process waits for them.

        If the devices could not communicate, another process may be lost. Then waits until it is known. The thread ends
        this process with its name.

        Returns:
          The error to raise instead, if the devices could not communicate and all processes are alive.
        """
        if self._peers is None or isinstance(error, (Preempted, Interrupted)):
            return None
        self._error = error
        stalled = None
        if isinstance(error, jax.errors.JaxRuntimeError) and any(words in str(error) for words in _COMMUNICATION):
            time.sleep(self._limits.lost_seconds + 3 * self._peers.interval)
            reason = " ".join(str(error).split())
            stalled = Stalled(f"The devices of the processes cannot communicate ({reason:.300}); repeat the command.")
        report_error(stalled or error)
        return stalled

    def _run(self) -> None:
        while (stopped := wait(self._stop, _CHECK_SECONDS)) is not None:
            if stopped:
                self._phases.skip(stopped)
                if self._peers is not None:
                    self._peers.resume()
            moment = self._phases.moment()
            limit = self._limits.seconds(moment.phase)
            # If code in C keeps the interpreter's lock, this thread cannot run. One in C then ends the process. It
            # needs a file descriptor, which `sys.stderr` of a notebook does not have.
            if math.isfinite(limit):
                faulthandler.dump_traceback_later(limit + _WRITE_SECONDS, exit=True, file=_STDERR)
            if self._peers is not None:
                self._check_peers(self._peers, moment)
            stuck = moment.stalled if moment.phase in STEPPING else moment.seconds
            if stuck > limit:
                self._end(ExitCode.STALLED, self._explain(moment, stuck), dump=True)
        faulthandler.cancel_dump_traceback_later()

    def _check_peers(self, peers: Peers, moment: Moment) -> None:
        if peers.failure is not None:
            code, message = peers.failure
            # Processes that fail together report it themselves, with more detail.
            if not self._stop.wait(0 if code == ExitCode.STALLED else _GRACE_SECONDS + 2 * peers.interval):
                self._end(code, message, dump=code == ExitCode.STALLED)
        elif peers.unanswered > self._limits.lost_seconds:
            message = (
                f"Process 0 of {coordination.process_count()}, which coordinates the others, has not answered for "
                f"{peers.unanswered:.0f} s; its machine or the process has died or hangs. Repeat the command."
            )
            self._end(ExitCode.STALLED, message, dump=True)
        elif moment.phase == "barrier" and moment.seconds > _LATE_SECONDS and moment.step != self._logged_step:
            self._logged_step = moment.step
            if late := self._late(peers):
                _log.warning("step %s waits for %s", f"{moment.step:,}", late)

    def _explain(self, moment: Moment, stuck: float) -> str:
        if moment.phase in STEPPING:
            what = f"no step was completed for {stuck:.0f} s"
        else:
            what = f"{DESCRIPTIONS[moment.phase]} takes longer than {stuck:.0f} s"
        who = f"this process is {DESCRIPTIONS[moment.phase]}"
        if self._peers is not None:
            late = self._late(self._peers)
            who = f"late: {late}" if late else "all processes wait, for a device or the network"
        return f"The run is stuck at step {moment.step}: {what}; {who}. Repeat the command."

    def _late(self, peers: Peers) -> str:
        table = peers.read(4 * peers.interval)
        if not table:
            return "process 0, which coordinates the others and does not answer"
        late = late_processes(table)
        states = [f"process {index} ({describe_state(table[index])})" for index in late[:8]]
        return ", ".join([*states, *([f"{len(late) - 8} more"] if len(late) > 8 else [])])

    def _end(self, code: int, message: str, *, dump: bool) -> None:
        """Ends the process."""
        if self._stop.is_set():
            return
        if self._peers is not None and code == ExitCode.STALLED:
            _within(_CHECK_SECONDS, lambda: coordination.report_failure(code, message))
        if isinstance(self._error, Exception) and not isinstance(self._error, (RunStopped, JanusError)):
            traceback.print_exception(self._error)
        if dump:
            _within(_WRITE_SECONDS, lambda: self._dump(message))
        print(f"janus-train: {message}", file=sys.stderr, flush=True)
        for child in multiprocessing.active_children():
            child.kill()
        coordination.leave(code, 3 * self._peers.interval if self._peers else 0)

    def _dump(self, message: str) -> None:
        index = coordination.process_index()
        path = self._folder / "stalls" / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}.process_{index}.txt"
        with tempfile.TemporaryFile() as file:
            file.write(f"{message}\n\n".encode())
            file.flush()
            faulthandler.dump_traceback(file)
            file.seek(0)
            write_bytes(path, file.read())
        print(f"The stacks of process {index} are in {path}.", file=sys.stderr)


def _suspend(number: int, frame: FrameType | None) -> None:
    """Stops this process after Ctrl-Z. Its thread in C would otherwise end it when it continues."""
    faulthandler.cancel_dump_traceback_later()
    os.kill(os.getpid(), signal.SIGSTOP)


@contextlib.contextmanager
def sharing_errors() -> Iterator[None]:
    """Context manager that reports an error in its block to the other processes of a cluster (`report_error`)."""
    try:
        yield
    except BaseException as error:
        report_error(error)
        raise


def report_error(error: BaseException) -> None:
    """Reports an error of this process to the others, and makes this process end without waiting for them."""
    if not coordination.is_joined() or isinstance(error, (Preempted, Interrupted)):
        return
    code = ExitCode.INTERNAL_ERROR
    if isinstance(error, RunStopped):
        code = error.exit_code
    elif is_disk_full(error):
        code = ExitCode.DISK_FULL
    elif failed_disk(error):
        code = ExitCode.STORAGE_UNAVAILABLE
    elif isinstance(error, JanusError):
        code = ExitCode.USER_ERROR
    elif isinstance(error, KeyboardInterrupt):
        code = ExitCode.INTERRUPTED
    reason = " ".join(str(error).split()) or type(error).__name__
    message = f"Process {coordination.process_index()} of {coordination.process_count()} has failed: {reason:.500}"
    coordination.report_failure(code, message)
    coordination.leave_at_exit(code)


def _within(seconds: float, action: Callable[[], None]) -> None:
    """Runs an action in a thread and waits for it no longer than this. Errors are logged."""

    def run() -> None:
        try:
            action()
        except Exception as error:
            _log.warning("%s", error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
