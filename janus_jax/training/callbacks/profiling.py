"""A trace of a few steps, for TensorBoard's profiler or https://ui.perfetto.dev."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from janus_jax.storage import writing


class Profile:
    """Traces some steps of the first process; a context manager, whose end ends a trace that is under way.

    Args:
      folder: where the trace goes.
      first: step to begin with, counted from 1. The first of a run compiles, and is best left out.
      count: of steps; 0 for no trace.
    """

    def __init__(self, folder: Path, first: int, count: int) -> None:
        self._folder = folder
        self._first, self._last = first, first + count - 1
        self._traces = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def before(self, step: int) -> None:
        """Begins where it is this step's turn."""
        if self._first == step <= self._last and jax.process_index() == 0:
            jax.profiler.start_trace(self._folder)
            self._traces = True

    def after(self, step: int, results: Any) -> None:
        """Ends after the last step, once its results are there."""
        if self._traces and step == self._last:
            jax.block_until_ready(results)
            self._end()

    def _end(self) -> None:
        if self._traces:
            self._traces = False
            with writing(self._folder):
                jax.profiler.stop_trace()
