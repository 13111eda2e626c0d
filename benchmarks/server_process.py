"""A server that runs as a process of its own, for benchmarks over HTTP on this machine."""

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import httpx

from janus_jax.errors import JanusError

ROOT = Path(__file__).parents[1]
FINISHED = 'janus_requests_total{end="finished"}'
"""Metric of the number of finished requests."""

_GREETING = re.compile(r"Serving .* at (http://\S+)")


class Server:
    """A process that prints `Serving NAME at URL` when it accepts requests.

    Attributes:
      url: Its address.
      seconds: Time from the start of the process to the address.
    """

    def __init__(self, command: Sequence[str], timeout: float = 900.0) -> None:
        """Starts the server and waits for its address.

        Args:
          command: Arguments of Python.
          timeout: Seconds after which the process is killed if it has printed no address.

        Raises:
          JanusError: The process has ended before.
        """
        begin = time.monotonic()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        self._process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT
        )
        assert self._process.stdout is not None
        timer = threading.Timer(timeout, self._process.kill)
        timer.start()
        greeting = next(filter(None, map(_GREETING.match, self._process.stdout)), None)
        timer.cancel()
        if greeting is None:
            self.kill()
            self._log.seek(0)
            errors = self._log.read().decode(errors="replace")
            raise JanusError(f"The server {' '.join(command[:2])} has not started: {errors[-2000:]}")
        self.url, self.seconds = greeting[1], time.monotonic() - begin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self.kill()

    def kill(self) -> None:
        """Kills the process with SIGKILL."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def memory(self) -> float:
        """Resident memory of the process in megabytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def metrics(self) -> dict[str, float]:
        """Returns the values of /metrics by name and labels, as in `janus_tokens_total{kind="text"}`."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    def wait(self, condition: Callable[[dict[str, float]], bool], seconds: float = 60.0) -> dict[str, float]:
        """Waits until the metrics fulfil a condition, at most some seconds. Returns the last metrics."""
        end = time.monotonic() + seconds
        while not condition(metrics := self.metrics()) and time.monotonic() < end:
            time.sleep(0.1)
        return metrics

    def wait_until_idle(self, finished: float = 0) -> dict[str, float]:
        """Waits until no request waits or runs, and a number of requests has finished. See `wait`."""
        busy = ("janus_queue", "janus_running", "janus_slots_used")
        return self.wait(lambda metrics: metrics[FINISHED] >= finished and not any(metrics[name] for name in busy))


def janus_serve(model: str, *flags: str) -> list[str]:
    """Returns the command of a server of a model in float32 without a page."""
    return ["-m", "launch.serve", "--model", model, "--dtype=float32", "--nopage", *flags]
