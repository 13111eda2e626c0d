"""Pools of data workers. Results can be read in any order. If a worker dies, reading a result raises at once.

Workers are separate programs rather than `multiprocessing` processes, because the latter import the main module and
with it jax. Each worker has its own socket, which closes when the worker ends. A `multiprocessing.Queue` can leave its
reader waiting forever if a process is killed while it uses the queue.
"""

import contextlib
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from janus_jax.errors import JanusError

Work = Callable[[Any], Any]
"""Function from a task to its result. The result must depend on the task only."""

_MAX_ASSIGNED = 2
"""Most tasks that are assigned to a worker at a time: the running task and the next one."""

_SHUTDOWN_SECONDS = 5.0


class Pool(Protocol):
    """Computes tasks, in this process or in worker processes, and returns their results in any requested order."""

    def submit(self, task: Any) -> int:
        """Submits a task. Returns a number that identifies it."""

    def result(self, number: int) -> Any:
        """Waits for the result of a task and returns it. Must be called at most once per task.

        Raises:
          JanusError: A worker process has ended, or a task raised a `JanusError`.
        """

    def cancel(self, number: int) -> None:
        """Discards a task or its result."""

    def close(self) -> None:
        """Ends the workers."""


class InlinePool:
    """Pool without worker processes. Computes a task when its result is requested."""

    def __init__(self, make_work: Callable[[], Work]):
        self._work = make_work()
        self._tasks: dict[int, Any] = {}
        self._numbers = 0

    def submit(self, task: Any) -> int:
        self._numbers += 1
        self._tasks[self._numbers] = task
        return self._numbers

    def result(self, number: int) -> Any:
        return self._work(self._tasks.pop(number))

    def cancel(self, number: int) -> None:
        del self._tasks[number]

    def close(self) -> None:
        self._tasks.clear()


class ProcessPool:
    """Pool of worker processes.

    Attributes:
      processes: The worker processes.
    """

    def __init__(self, make_work: Callable[[], Work], count: int):
        """Starts the processes and returns at once.

        Args:
          make_work: Function that is called once in each process and returns the work. Must be picklable.
          count: Number of processes, at least 1.
        """
        self._lock = threading.Condition()
        self._numbers = 0
        self._backlog: deque[tuple[int, Any]] = deque()
        self._wanted: set[int] = set()
        self._results: dict[int, Any] = {}
        self._error: Exception | None = None
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._assigned = [_MAX_ASSIGNED] * count  # No tasks are sent before the worker has received its work.
        self.processes: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            pool_end, worker_end = socket.socketpair()
            with worker_end:
                self.processes.append(_start(worker_end.fileno()))
            self._sockets.append(pool_end)
        self._reader = threading.Thread(target=self._read, args=(make_work,), name="data workers", daemon=True)
        self._reader.start()

    def submit(self, task: Any) -> int:
        with self._lock:
            self._numbers += 1
            self._wanted.add(self._numbers)
            self._backlog.append((self._numbers, task))
            self._assign()
            return self._numbers

    def result(self, number: int) -> Any:
        with self._lock:
            self._lock.wait_for(lambda: number in self._results or self._error is not None or self._closed)
            if number in self._results:
                self._wanted.discard(number)
                return self._results.pop(number)
            raise self._error or JanusError("The data workers are closed; open the stream again.")

    def cancel(self, number: int) -> None:
        with self._lock:
            self._wanted.discard(number)
            self._results.pop(number, None)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._lock.notify_all()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for process in self.processes:
            try:
                process.wait(_SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._reader.join(_SHUTDOWN_SECONDS)
        for connection in self._sockets:
            connection.close()

    def _assign(self) -> None:
        """Sends tasks to the least busy workers. Must hold the lock. Tasks are small, so sending does not block."""
        while self._backlog and self._error is None and not self._closed:
            worker = min(range(len(self._assigned)), key=self._assigned.__getitem__)
            if self._assigned[worker] >= _MAX_ASSIGNED:
                return
            number, task = self._backlog.popleft()
            if number in self._wanted:
                self._assigned[worker] += 1
                with contextlib.suppress(OSError):  # The reader thread reports that the worker has ended.
                    _send(self._sockets[worker], (number, task))

    def _read(self, make_work: Callable[[], Work]) -> None:
        """Runs in the reader thread. Receives results as they arrive, so that no worker waits for the main thread."""
        try:
            with selectors.DefaultSelector() as selector:
                for worker, connection in enumerate(self._sockets):
                    selector.register(connection, selectors.EVENT_READ, worker)
                for worker, connection in enumerate(self._sockets):
                    with contextlib.suppress(OSError):  # A closed socket is reported below.
                        _send(connection, make_work)
                    with self._lock:
                        self._assigned[worker] = 0
                        self._assign()
                while not self._closed:
                    for key, _ in selector.select():
                        self._receive_result(key.data)
        except Exception as error:
            with self._lock:
                self._error = self._error or error
                self._lock.notify_all()

    def _receive_result(self, worker: int) -> None:
        try:
            number, result, error = _receive(self._sockets[worker])
        except (EOFError, OSError) as lost:
            if self._closed:
                return
            raise JanusError(
                f"A data worker (process {self.processes[worker].pid}) has ended {self._exit_cause(worker)}; check its "
                f"messages above and the machine's memory, then start again from the last checkpoint."
            ) from lost
        if error is not None:
            raise error
        with self._lock:
            self._assigned[worker] -= 1
            if number in self._wanted:
                self._results[number] = result
            self._assign()
            self._lock.notify_all()

    def _exit_cause(self, worker: int) -> str:
        try:
            code = self.processes[worker].wait(_SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            return "its connection"
        return f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with code {code}"


def serve(descriptor: int) -> None:
    """Runs a worker process. Receives its work, then tasks, until the pool closes the socket."""
    # Interrupts and preemption notices are sent to workers, too. Only the main process handles them, and it needs its
    # workers until it ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        try:
            work = _receive(connection)()
            while True:
                number, task = _receive(connection)
                _send(connection, (number, work(task), None))
        except (EOFError, ConnectionError):
            raise
        except JanusError as error:
            _send(connection, (None, None, JanusError(str(error))))
        except Exception:
            trace = RuntimeError(f"A data worker failed:\n{traceback.format_exc()}")
            _send(connection, (None, None, trace))


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    code = f"from janus_jax.data.pipeline.workers import serve; serve({descriptor})"
    return subprocess.Popen(
        # -P: files in the working folder do not hide modules. The folder is last in PYTHONPATH (`cli.run`).
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.DEVNULL,
        pass_fds=(descriptor,),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
    )


def _send(connection: socket.socket, value: Any) -> None:
    """Sends a pickled value. Arrays are sent separately, without copying them."""
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    parts = [memoryview(head), *(array.raw() for array in arrays)]
    connection.sendall(struct.pack(f"<{len(parts) + 1}Q", len(parts), *map(len, parts)))
    for part in parts:
        connection.sendall(part)


def _receive(connection: socket.socket) -> Any:
    """Returns a value sent by `_send`.

    Raises:
      EOFError: The other end of the socket is closed.
    """
    (count,) = struct.unpack("<Q", _read_bytes(connection, 8))
    sizes = struct.unpack(f"<{count}Q", _read_bytes(connection, 8 * count))
    head, *arrays = [_read_bytes(connection, size) for size in sizes]
    return pickle.loads(head, buffers=arrays)


def _read_bytes(connection: socket.socket, size: int) -> bytearray:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        received = connection.recv_into(view)
        if not received:
            raise EOFError
        view = view[received:]
    return content
