"""What a run tells: TensorBoard's events, `metrics.jsonl`, a line of progress. From the first process alone."""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import jax
import numpy as np
from jaxtyping import UInt8

from janus_jax.storage import write_bytes, writing

_REDRAW = 0.1  # seconds
_FLUSH = 20.0  # seconds
_BAR = 20  # characters


class RateMeter:
    """Rates over the time since they were last read.

    with meter.waiting():
        batch = next(stream)
    ...
    meter.add(tokens=4096, samples=8)
    reports.progress(step, {"loss": loss, **meter.rates()})
    """

    def __init__(self) -> None:
        self._begin()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def add(self, steps: int = 1, **counts: float) -> None:
        """Counts what was done: `add(tokens=4096, samples=8)`."""
        for name, count in {"steps": steps, **counts}.items():
            self._counts[name] = self._counts.get(name, 0) + count

    def rates(self) -> dict[str, float]:
        """{"steps/s", and so for every count, "data_wait" (0..1, the share of the time)}; begins anew.

        The time is the caller's: what was handed to a device and is not waited for has not been done.
        """
        passed = max(time.perf_counter() - self._start, 1e-9)
        rates = {f"{name}/s": count / passed for name, count in self._counts.items()}
        rates["data_wait"] = min(self._waited / passed, 1.0)
        self._begin()
        return rates

    def _begin(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._counts: dict[str, float] = {}


class MetricWriter:
    """Where a run's figures go; a context manager.

        WORKDIR/metrics.jsonl       one object a line: {"step": 10, "loss": 2.5, ...}
        WORKDIR/tensorboard/        scalars, texts, images

    Args:
      workdir: a folder of this machine (or mounted on it); None for the progress line alone.
      total_steps: what the bar and the time left are reckoned with.
      start_step: how many steps were taken before. What an interrupted run told of later ones is struck out.
      every_seconds: how often the progress line is printed anew where the output is no terminal.
      stream: where the progress line goes; stdout by default.

    Raises:
      JanusError: the folder cannot be written to.
      StorageFull: here and in every call: the disk is full.
    """

    def __init__(
        self,
        workdir: str | Path | None,
        total_steps: int,
        start_step: int = 0,
        *,
        every_seconds: float = 30.0,
        stream: TextIO | None = None,
    ) -> None:
        self._speaks = jax.process_index() == 0
        self._line = _Line(total_steps, every_seconds, stream or sys.stdout)
        self._metrics: _Metrics | None = None
        self._events: _Events | None = None
        if workdir is None or not self._speaks:
            return
        with writing(workdir):
            self._metrics = _Metrics(Path(workdir) / "metrics.jsonl", start_step)
            self._events = _Events(Path(workdir) / "tensorboard", start_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # What ends the run is told, not what its last words met with.
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            self.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """To TensorBoard and metrics.jsonl.

        A step's figures are told before the step is saved: then a run that goes on from it lacks none of them.
        """
        if self._metrics and self._events:
            figures = {name: float(value) for name, value in values.items()}
            with writing(self._metrics.path):
                self._metrics.write(step, figures)
            self._events.write(step, (("scalar", name, value) for name, value in figures.items()))

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """To TensorBoard, as Markdown."""
        if self._events:
            self._events.write(step, (("text", name, text) for name, text in texts.items()))

    def images(
        self, step: int, images: Mapping[str, Sequence[UInt8[np.ndarray, "H W 3"]] | UInt8[np.ndarray, "N H W 3"]]
    ) -> None:
        """To TensorBoard: the images of a name lie side by side under it."""
        if self._events:
            named = ((f"{name}/{i}", image) for name, row in images.items() for i, image in enumerate(row))
            self._events.write(step, (("image", name, image) for name, image in named))

    def progress(self, step: int, values: Mapping[str, float | str]) -> None:
        """The progress line: the step, these values, the time left. Call it as often as you like.

        Args:
          step: how many steps were taken, this one included.
        """
        if self._speaks:
            self._line.show(step, values)

    def message(self, text: str) -> None:
        """A line of its own, above the progress line."""
        if self._speaks:
            self._line.message(text)

    def close(self) -> None:
        """Ends the line and writes what is not written yet."""
        self._line.end()
        for file in (self._metrics, self._events):
            if file:
                with writing(file.path):
                    file.close()


class _Metrics:
    def __init__(self, path: Path, start_step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _strike_out(path, start_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        # There is no NaN in json.
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **known}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _strike_out(path: Path, start_step: int) -> None:
    """Removes the lines of later steps, and one that was broken off."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if json.loads(line)["step"] <= start_step:
                kept.append(line)
    write_bytes(path, "".join(kept).encode())


class _Events:
    """TensorBoard's file, written here and now: tensorboardX' own writer does so in a thread, and hangs if it dies."""

    def __init__(self, path: Path, start_step: int) -> None:
        from tensorboardX import event_file_writer, proto, summary  # Here: it takes two seconds.

        self._summary = summary
        self._event = proto.event_pb2.Event
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        # Runs that follow within a second are told apart by their process.
        self._file = event_file_writer.EventsWriter(str(path / "events"), f".{os.getpid()}")
        # TensorBoard then forgets what an earlier run told of this step and later ones.
        log = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
        self._put(start_step + 1, session_log=log)
        self._flushed = time.monotonic()

    def write(self, step: int, items: Iterator[tuple[str, str, Any]]) -> None:
        with writing(self.path):
            for kind, name, value in items:
                make = getattr(self._summary, kind)
                made = make(name, value, dataformats="HWC") if kind == "image" else make(name, value)
                self._put(step, summary=made)
            if time.monotonic() - self._flushed > _FLUSH:
                self._file.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def _put(self, step: int, **content: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), step=step, **content))


class _Line:
    """One line, drawn over itself on a terminal, and printed now and then elsewhere."""

    def __init__(self, total_steps: int, every_seconds: float, stream: TextIO) -> None:
        self._total = total_steps
        self._stream = stream
        self._terminal = stream.isatty()
        self._every = _REDRAW if self._terminal else every_seconds
        self._drawn_at = -math.inf
        self._drawn = ""
        self._first: tuple[int, float] | None = None

    def show(self, step: int, values: Mapping[str, float | str]) -> None:
        now = time.monotonic()
        # From the first call on: what was compiled before it comes once.
        first_step, first_time = self._first = self._first or (step, now)
        if now - self._drawn_at < self._every and step < self._total:
            return
        self._drawn_at = now
        figures = [f"{name} {_short(value)}" for name, value in values.items()]
        if step > first_step:
            seconds = (now - first_time) / (step - first_step) * (self._total - step)
            figures.append(f"left {_clock(seconds)}")
        bar = f"[{'#' * (_BAR * step // max(self._total, 1)):.<{_BAR}}] " if self._terminal else ""
        self._drawn = "  ".join([f"{bar}step {step:,}/{self._total:,}", *figures])
        self._draw()

    def message(self, text: str) -> None:
        if self._terminal and self._drawn:
            self._stream.write("\r\x1b[K")
        print(text, file=self._stream, flush=True)
        if self._terminal and self._drawn:
            self._draw()

    def end(self) -> None:
        if self._terminal and self._drawn:
            print(file=self._stream, flush=True)
        self._drawn = ""

    def _draw(self) -> None:
        if self._terminal:
            # A line that wraps could not be drawn over.
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{self._drawn[:width]}\x1b[K")
            self._stream.flush()
        else:
            print(self._drawn, file=self._stream, flush=True)


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
