"""Messages and barriers between the processes of a cluster, without devices.

They use jax's coordination service, which process 0 hosts. A process whose devices or data are stuck can still report.
jax has no public interface to the service; this module is the only one that uses the private one.
"""

import atexit
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from janus_jax.errors import ExitCode, Stalled

_T = TypeVar("_T")

SECONDS = 1800.0
"""Default limit of a barrier. Thousands of hosts do not start or finish a save at the same time."""

_PREFIX = "janus"
_FAILURE, _LEFT = "failure", "left"
_POLL_SECONDS = 0.2
_MAX_SECONDS = 30 * 86400.0
_CONNECT_SECONDS = 5.0
_MAX_NAMES = 8

_rounds: dict[str, int] = {}  # Number of calls of `combine` by name.
_handlers: list[Any] = []  # Functions that C code calls.


def is_joined() -> bool:
    """Returns whether this process has joined a cluster of several processes."""
    # Commands without jax have not.
    return "jax" in sys.modules and _state().client is not None and _state().num_processes > 1


def process_count() -> int:
    """Returns the number of processes, without initializing devices."""
    return int(_state().num_processes)


def process_index() -> int:
    """Returns the index of this process, without initializing devices."""
    return int(_state().process_id)


def has_preemption_service() -> bool:
    """Returns whether jax notifies all processes when one of them is about to be preempted."""
    return _state().preemption_sync_manager is not None


def barrier(name: str, seconds: float = SECONDS) -> None:
    """Waits until all processes have called it with this name. A name can be used repeatedly.

    Raises:
      Stalled: Some processes did not arrive in time, or a process is lost. The message names them.
    """
    import jax

    if not is_joined():
        return
    try:
        _client().wait_at_barrier(f"{_PREFIX}/{name}", _milliseconds(seconds))
    except jax.errors.JaxRuntimeError as error:
        raise Stalled(_explain(name, seconds, str(error))) from error


def combine(
    name: str, value: Mapping[str, Any], function: Callable[[list[dict[str, Any]]], _T], seconds: float = SECONDS
) -> _T:
    """Combines JSON values of all processes. Also acts as a barrier.

    Only process 0 reads all values, because thousands of processes would overload the service.

    Args:
      name: Name of the values. It can be used repeatedly.
      value: Value of this process.
      function: Maps the values, in process order, to a small JSON value. Called in process 0.
      seconds: Limit of the barrier.

    Returns:
      The result of `function`, in every process.

    Raises:
      Stalled: See `barrier`.
    """
    import jax

    text = json.dumps(value)
    if not is_joined():
        return _copy(function([json.loads(text)]))
    number = _rounds[name] = _rounds.get(name, 0) + 1
    folder = f"combine/{name}/{number}"
    _client().key_value_set(f"{_PREFIX}/{folder}/{process_index()}", text)
    barrier(f"combine/{name}", seconds)
    combined = f"{_PREFIX}/combined/{name}"
    if process_index() == 0:
        values = _read_folder(folder)
        _client().key_value_delete(f"{_PREFIX}/{folder}/")
        result = function([values[index] for index in range(process_count())])
        _client().key_value_set(f"{combined}/{number}", json.dumps(result))
        # All processes have read the round before this one.
        _client().key_value_delete(f"{combined}/{number - 1}")
        return _copy(result)
    try:
        found: _T = json.loads(_client().blocking_key_value_get(f"{combined}/{number}", _milliseconds(seconds)))
    except jax.errors.JaxRuntimeError as error:
        raise Stalled(f"Process 0 of {process_count()} has not combined {name!r}; repeat the command.") from error
    return found


def publish(name: str, value: Mapping[str, Any]) -> None:
    """Publishes a JSON value of this process for the others, replacing the earlier one."""
    _client().key_value_set(f"{_PREFIX}/{name}/{process_index()}", json.dumps(value), allow_overwrite=True)


def published(name: str) -> dict[int, dict[str, Any]]:
    """Returns the values that the processes have published under a name, by process."""
    return _read_folder(name)


def report_failure(code: int, message: str) -> None:
    """Reports to all processes that the run has failed. Only the first report counts.

    Args:
      code: Exit code for all processes.
      message: Sentence that names the process.
    """
    import jax

    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(f"{_PREFIX}/{_FAILURE}/0", json.dumps({"code": code, "message": message}))


def reported_failure() -> tuple[int, str] | None:
    """Returns exit code and message of `report_failure`, or None if no process has called it."""
    found = _read_folder(_FAILURE).get(0)
    return (found["code"], found["message"]) if found else None


def leave_at_exit(code: int) -> None:
    """Makes this process call `leave` at the end of the interpreter. jax would wait there for all other processes."""
    # Runs before jax's own function, which was registered earlier.
    atexit.register(leave, code)


def leave(code: int, seconds: float = 30.0) -> NoReturn:
    """Ends this process at once.

    Process 0 first waits until the others have left, because they read from it why the run ends.

    Args:
      code: Exit code.
      seconds: Longest time that process 0 waits.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # If the service no longer answers, the process ends all the same.
    thread = threading.Thread(target=_say_goodbye, args=(seconds,), daemon=True)
    thread.start()
    thread.join(seconds)
    os._exit(code)


def _say_goodbye(seconds: float) -> None:
    if not is_joined():
        return
    publish(_LEFT, {})
    deadline = time.monotonic() + seconds
    while process_index() == 0 and time.monotonic() < deadline and len(published(_LEFT)) < process_count():
        time.sleep(_POLL_SECONDS)


def explain_aborts() -> None:
    """Ends this process with a sentence and a retryable exit code when jax aborts it because a process is lost.

    jax aborts all processes, with SIGABRT from one of its own threads, as soon as the coordination service is gone or
    reports a lost process. jaxlib 0.10 cannot call a Python function instead. Other aborts keep their effect.
    """

    def explain(number: int) -> None:
        address = _state().coordinator_address
        reason = None if process_index() == 0 else _unreachable(address)
        if reason is None:
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            return
        message = f"Process 0 of the cluster, at {address}, is lost ({reason}); repeat the command.\n"
        with contextlib.suppress(OSError):
            os.write(2, message.encode())
        os._exit(ExitCode.STALLED)

    # Python's own handlers run in the main thread, which may be stuck.
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(explain)
    _handlers.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


def describe_processes(indices: list[int]) -> str:
    """Returns a phrase such as "Process 3" or "Processes 1, 3 and 7"."""
    names = [str(index) for index in indices[:_MAX_NAMES]]
    if len(indices) > _MAX_NAMES:
        names.append(f"{len(indices) - _MAX_NAMES} more")
    if len(names) == 1:
        return f"Process {names[0]}"
    return f"Processes {', '.join(names[:-1])} and {names[-1]}"


def _milliseconds(seconds: float) -> int:
    return int(min(seconds, _MAX_SECONDS) * 1000)


def _copy(value: _T) -> _T:
    """Returns a value as another process reads it."""
    copied: _T = json.loads(json.dumps(value))
    return copied


def _explain(name: str, seconds: float, error: str) -> str:
    missing = sorted(map(int, re.findall(r"^(?:.*task:)?(\d+)$", error.partition("timed out task names:")[2], re.M)))
    if missing:
        return (
            f"{describe_processes(missing)} of {process_count()} did not arrive at {name!r} within {seconds:.0f} s; "
            f"look at the log of that process, and repeat the command."
        )
    return f"The processes cannot meet at {name!r} ({' '.join(error.split()):.200}); repeat the command."


def _unreachable(address: str) -> str | None:
    """Returns why no process accepts connections at host:port; None if one does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _read_folder(name: str) -> dict[int, dict[str, Any]]:
    pairs = _client().key_value_dir_get(f"{_PREFIX}/{name}/")
    return {int(key.rpartition("/")[2]): json.loads(text) for key, text in pairs}


def _state() -> Any:
    from jax._src import distributed

    return distributed.global_state


def _client() -> Any:
    return _state().client
