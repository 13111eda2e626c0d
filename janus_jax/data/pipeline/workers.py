"""Worker processes that compute in whatever order and are read in ours; one that dies is an error at once.

They are started as programs of their own, not by `multiprocessing`: that would import the command that started us,
and with it jax, in each of them; and a process killed in the midst of a `multiprocessing.Queue` can leave its reader
waiting for ever. Here each has a socket of its own, whose other end closes with the process.
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
"""From a task to its result: a function of the task alone."""

_IN_HAND = 2
"""Tasks that a worker holds: the one it is at, and the next."""

_PATIENCE_SECONDS = 5.0


class Pool(Protocol):
    """Where tasks are computed."""

    def submit(self, task: Any) -> int:
        """Hands in a task; gives the number under which its result is asked for."""

    def result(self, number: int) -> Any:
        """The result, once; waits for it.

        Raises:
          JanusError: a worker process has ended, or the work raised one.
        """

    def forget(self, number: int) -> None:
        """Gives up a result that is not wanted any more."""

    def close(self) -> None:
        """Ends the workers."""


class InlinePool:
    """No worker processes: each task is computed when its result is asked for."""

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

    def forget(self, number: int) -> None:
        del self._tasks[number]

    def close(self) -> None:
        self._tasks.clear()


class ProcessPool:
    """Worker processes.

    Attributes:
      processes: the running ones.
    """

    def __init__(self, make_work: Callable[[], Work], count: int):
        """Starts `count` processes and returns at once.

        Args:
          make_work: makes the work, in each process; what it refers to travels there by pickle.
          count: at least 1.
        """
        self._lock = threading.Condition()
        self._numbers = 0
        self._backlog: deque[tuple[int, Any]] = deque()
        self._wanted: set[int] = set()
        self._results: dict[int, Any] = {}
        self._error: Exception | None = None
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._in_hand = [_IN_HAND] * count  # none is free before it has its work
        self.processes: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            with theirs:
                self.processes.append(_start(theirs.fileno()))
            self._sockets.append(ours)
        self._reader = threading.Thread(target=self._read, args=(make_work,), name="data workers", daemon=True)
        self._reader.start()

    def submit(self, task: Any) -> int:
        with self._lock:
            self._numbers += 1
            self._wanted.add(self._numbers)
            self._backlog.append((self._numbers, task))
            self._hand_out()
            return self._numbers

    def result(self, number: int) -> Any:
        with self._lock:
            self._lock.wait_for(lambda: number in self._results or self._error is not None or self._closed)
            if number in self._results:
                self._wanted.discard(number)
                return self._results.pop(number)
            raise self._error or JanusError("The data workers are closed; open the stream again.")

    def forget(self, number: int) -> None:
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
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._reader.join(_PATIENCE_SECONDS)
        for connection in self._sockets:
            connection.close()

    def _hand_out(self) -> None:
        """With the lock held: gives tasks to the workers that have fewest. Tasks are small, so that none blocks."""
        while self._backlog and self._error is None and not self._closed:
            worker = min(range(len(self._in_hand)), key=self._in_hand.__getitem__)
            if self._in_hand[worker] >= _IN_HAND:
                return
            number, task = self._backlog.popleft()
            if number in self._wanted:
                self._in_hand[worker] += 1
                with contextlib.suppress(OSError):  # the reader sees that the worker has ended, and says so
                    _send(self._sockets[worker], (number, task))

    def _read(self, make_work: Callable[[], Work]) -> None:
        """What the thread does: takes results as they come, so that no worker waits while the main thread is away."""
        try:
            with selectors.DefaultSelector() as selector:
                for worker, connection in enumerate(self._sockets):
                    selector.register(connection, selectors.EVENT_READ, worker)
                for worker, connection in enumerate(self._sockets):
                    with contextlib.suppress(OSError):  # below, an end that is closed is told from others
                        _send(connection, make_work)
                    with self._lock:
                        self._in_hand[worker] = 0
                        self._hand_out()
                while not self._closed:
                    for key, _ in selector.select():
                        self._take(key.data)
        except Exception as error:
            with self._lock:
                self._error = self._error or error
                self._lock.notify_all()

    def _take(self, worker: int) -> None:
        try:
            number, result, error = _receive(self._sockets[worker])
        except (EOFError, OSError) as lost:
            if self._closed:
                return
            raise JanusError(
                f"A data worker (process {self.processes[worker].pid}) has ended {self._how(worker)}; look for its "
                f"last words above, and at the machine's memory, then start again from the last checkpoint."
            ) from lost
        if error is not None:
            raise error
        with self._lock:
            self._in_hand[worker] -= 1
            if number in self._wanted:
                self._results[number] = result
            self._hand_out()
            self._lock.notify_all()

    def _how(self, worker: int) -> str:
        try:
            code = self.processes[worker].wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return "its connection"
        return f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with code {code}"


def serve(descriptor: int) -> None:
    """The worker process: gets its work, then tasks, one after the other, until the other end closes."""
    # An interrupt, and the notice before a preemption, reach every process of the group (SLURM's `--signal=USR1` every
    # process of the job). They are the main process's to answer; it needs its workers until it is done, and they end
    # when it does.
    for notice in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(notice, signal.SIG_IGN)
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
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        pass_fds=(descriptor,),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
    )


def _send(connection: socket.socket, value: Any) -> None:
    """Sends by pickle, arrays beside it and uncopied."""
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    parts = [memoryview(head), *(array.raw() for array in arrays)]
    connection.sendall(struct.pack(f"<{len(parts) + 1}Q", len(parts), *map(len, parts)))
    for part in parts:
        connection.sendall(part)


def _receive(connection: socket.socket) -> Any:
    """What `_send` sent.

    Raises:
      EOFError: the other end is closed.
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
