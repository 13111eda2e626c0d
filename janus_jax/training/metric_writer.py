"""Writes metrics to `metrics.jsonl`, the trackers and the console, from the first process only."""

import contextlib
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import UInt8

from janus_jax.buckets import Mirror, as_path, is_remote
from janus_jax.storage import write_bytes, write_json, writing
from janus_jax.training.console import Console
from janus_jax.training.trackers import DEFAULT_TRACKERS, TrackedRun, Tracker, TrackerThreads, find_trackers

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
        WORKDIR/run.json            the id of the run, for trackers

    Trackers show the same metrics, and texts, images and answers.

    Args:
      workdir: Folder of the run; None for the console only. If it is on a bucket, the files are written locally and
        uploaded at intervals and by `flush`.
      console: Console of the run.
      start_step: Step at which the run starts or resumes. Metrics of later steps, which an interrupted run wrote, are
        removed.
      trackers: Names of the trackers (`trackers.find_trackers`).
      config: Configuration as JSON values, for the trackers.

    Raises:
      JanusError: The folder cannot be written, or a tracker is unknown.
      StorageFull: The disk is full. `scalars` and `close` raise it too.
    """

    def __init__(
        self,
        workdir: str | Path | None,
        console: Console,
        start_step: int = 0,
        *,
        trackers: Sequence[str] = DEFAULT_TRACKERS,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._console = console
        self._metrics: _MetricLines | None = None
        self._trackers: TrackerThreads | None = None
        self._mirror: Mirror | None = None
        if workdir is not None and jax.process_index() == 0:
            found, folder = find_trackers(trackers), as_path(workdir)
            files = folder
            if is_remote(folder):
                self._mirror = Mirror(folder, _UPLOAD_SECONDS)
                for name in ("metrics.jsonl", "run.json"):
                    self._mirror.fetch(name)
                files = self._mirror.folder
            with writing(files):
                self._metrics = _MetricLines(files / "metrics.jsonl", start_step)
            if found:
                id = _run_id(files / "run.json")
                run = TrackedRun(id, folder, config or {}, start_step, console.message, files=files)
                self._trackers = TrackerThreads(found, run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # The error that ends the run is reported, not a failure to write its last metrics.
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            self.close(succeeded=error is None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars to metrics.jsonl and the trackers.

        Write the scalars of a step before its checkpoint is saved, because a resumed run does not repeat the step.
        """
        scalars = {name: float(value) for name, value in values.items()}
        if self._metrics:
            self._metrics.write(step, scalars)
        self._track(lambda tracker: tracker.scalars(step, scalars))
        if self._mirror:
            self._mirror.upload_if_due()

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Shows Markdown texts in the trackers."""
        self._track(lambda tracker: tracker.texts(step, texts))

    def images(
        self, step: int, name: str, images: Sequence[UInt8[np.ndarray, "H W 3"]], captions: Sequence[str] = ()
    ) -> None:
        """Shows images in the trackers, with one caption for each image, such as its prompt, or none."""
        self._track(lambda tracker: tracker.images(step, name, images, captions))

    def answers(self, step: int, name: str, answers: Sequence[tuple[str, str]]) -> None:
        """Shows pairs of a question and an answer in the trackers."""
        self._track(lambda tracker: tracker.answers(step, name, answers))

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
        if self._mirror:
            self._mirror.upload()

    def close(self, succeeded: bool = True) -> None:
        """Closes the file and finishes the trackers. See `Tracker.finish`."""
        trackers, self._trackers = self._trackers, None
        try:
            if self._metrics:
                self._metrics.close()
        finally:
            if trackers:
                trackers.finish(succeeded)
            if self._mirror:
                self._mirror.close()

    def _track(self, call: Callable[[Tracker], None]) -> None:
        if self._trackers:
            self._trackers.put(call)


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


def _run_id(path: Path) -> str:
    """Returns the id in this file, or writes a new one."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    new = uuid.uuid4().hex
    write_json(path, {"id": new})
    return new
