"""Writes metrics to `metrics.jsonl`, TensorBoard and the console, from the first process only."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import UInt8

from janus_jax.buckets import Mirror, as_path, is_remote
from janus_jax.storage import write_bytes, writing
from janus_jax.training.console import Console

_FLUSH_SECONDS = 20.0
_UPLOAD_SECONDS = 60.0


class RateMeter:
    """Measures the work per second since the rates were last read."""

    def __init__(self) -> None:
        self._reset()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context whose duration counts as waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def add(self, steps: int = 1, **counts: float) -> None:
        """Counts work, for example `add(tokens=4096, samples=8)`."""
        for name, count in {"steps": steps, **counts}.items():
            self._counts[name] = self._counts.get(name, 0) + count

    def rates(self) -> dict[str, float]:
        """Returns `steps/s`, `NAME/s` for every count, and `data_wait`, and starts a new measurement.

        `data_wait` is the fraction of the time spent waiting for data, from 0 to 1.
        """
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        rates = {f"{name}/s": count / elapsed for name, count in self._counts.items()}
        rates["data_wait"] = min(self._waited / elapsed, 1.0)
        self._reset()
        return rates

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._counts: dict[str, float] = {}


class MetricWriter:
    """Context manager that writes the metrics of a run.

        WORKDIR/metrics.jsonl       one JSON object per line: {"step": 10, "loss": 2.5, ...}
        WORKDIR/tensorboard/        scalars, texts, images

    Args:
      workdir: Folder of the run; None for the console only. If it is on a bucket, the files are written locally and
        uploaded at intervals and by `flush`.
      console: Console of the run.
      start_step: Step at which the run starts or resumes. Metrics of later steps, which an interrupted run wrote, are
        removed.

    Raises:
      JanusError: The folder cannot be written.
      StorageFull: The disk is full. All methods raise it too.
    """

    def __init__(self, workdir: str | Path | None, console: Console, start_step: int = 0) -> None:
        self._console = console
        self._metrics: _MetricLines | None = None
        self._events: _Events | None = None
        self._mirror: Mirror | None = None
        if workdir is not None and jax.process_index() == 0:
            folder = as_path(workdir)
            if is_remote(folder):
                self._mirror = Mirror(folder, _UPLOAD_SECONDS)
                self._mirror.fetch("metrics.jsonl")
                folder = self._mirror.folder
            with writing(workdir):
                self._metrics = _MetricLines(folder / "metrics.jsonl", start_step)
                self._events = _Events(folder / "tensorboard", start_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # The error that ends the run is reported, not a failure to write its last metrics.
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            self.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars to TensorBoard and metrics.jsonl.

        Write the scalars of a step before its checkpoint is saved, because a resumed run does not repeat the step.
        """
        if self._metrics and self._events:
            scalars = {name: float(value) for name, value in values.items()}
            self._metrics.write(step, scalars)
            self._events.write(step, (self._events.summary.scalar(name, value) for name, value in scalars.items()))
        if self._mirror:
            self._mirror.upload_if_due()

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes Markdown texts to TensorBoard."""
        if self._events:
            self._events.write(step, (self._events.summary.text(name, text) for name, text in texts.items()))

    def images(
        self, step: int, images: Mapping[str, Sequence[UInt8[np.ndarray, "H W 3"]] | UInt8[np.ndarray, "N H W 3"]]
    ) -> None:
        """Writes images to TensorBoard, as `NAME/0`, `NAME/1` and so on."""
        if self._events:
            named = ((f"{name}/{i}", image) for name, group in images.items() for i, image in enumerate(group))
            image = self._events.summary.image
            self._events.write(step, (image(name, pixels, dataformats="HWC") for name, pixels in named))

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the progress. See `Console.progress`."""
        self._console.progress(step, values)

    def message(self, text: str) -> None:
        """Prints a line. See `Console.message`."""
        self._console.message(text)

    def flush(self) -> None:
        """Returns after all metrics are in the folder of the run. Every process may call it.

        Raises:
          StorageUnavailable: The folder is on a bucket that does not answer.
        """
        if self._mirror and self._events:
            self._events.flush()
            self._mirror.upload()

    def close(self) -> None:
        """Closes the files."""
        for file in (self._metrics, self._events, self._mirror):
            if file:
                file.close()


class _MetricLines:
    """Writer of `metrics.jsonl`."""

    def __init__(self, path: Path, start_step: int) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _remove_later_steps(path, start_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        # JSON has no NaN.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()

    def close(self) -> None:
        with writing(self._path):
            self._file.close()


def _remove_later_steps(path: Path, start_step: int) -> None:
    """Removes the lines of later steps and an incomplete last line."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if json.loads(line)["step"] <= start_step:
                kept.append(line)
    write_bytes(path, "".join(f"{line}\n" for line in kept).encode())


class _Events:
    """Writer of TensorBoard's event file. tensorboardX's own writer uses a thread and hangs if that thread dies."""

    def __init__(self, path: Path, start_step: int) -> None:
        from tensorboardX import event_file_writer, proto, summary  # Imported late: it takes two seconds.

        self.summary = summary
        self._event = proto.event_pb2.Event
        self._path = path
        path.mkdir(parents=True, exist_ok=True)
        # The process id distinguishes runs that start in the same second.
        self._file = event_file_writer.EventsWriter(str(path / "events"), f".{os.getpid()}")
        # TensorBoard then discards what an earlier run wrote for this and later steps.
        log = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
        self._put(start_step + 1, session_log=log)
        self._flushed = time.monotonic()

    def write(self, step: int, summaries: Iterable[Any]) -> None:
        with writing(self._path):
            for summary in summaries:
                self._put(step, summary=summary)
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()

    def flush(self) -> None:
        with writing(self._path):
            self._file.flush()

    def close(self) -> None:
        with writing(self._path):
            self._file.close()

    def _put(self, step: int, **content: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), step=step, **content))
