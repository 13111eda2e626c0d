"""Profiler trace of a few steps, for TensorBoard's profiler or https://ui.perfetto.dev."""

import contextlib
from pathlib import Path

import jax

from janus_jax.buckets import staged_folder
from janus_jax.storage import writing
from janus_jax.training.callbacks.base import Callback, TrainingRun


class Profiling(Callback):
    """Traces some steps of the first process.

    Args:
      folder: Folder of the trace.
      first: First step to trace, counted from 1. The first step of a run includes compilation.
      count: Number of steps to trace; 0 disables the trace.
    """

    def __init__(self, folder: Path, first: int, count: int) -> None:
        self._folder = folder
        self._first, self._last = first, first + count - 1
        self._is_tracing = False
        self._staged = contextlib.ExitStack()

    def before_step(self, step: int) -> None:
        """Starts the trace before its first step."""
        if self._first == step <= self._last and jax.process_index() == 0:
            jax.profiler.start_trace(self._staged.enter_context(staged_folder(self._folder)))
            self._is_tracing = True

    def after_step(self, run: TrainingRun) -> None:
        """Stops the trace once the results of its last step are computed."""
        if self._is_tracing and run.step == self._last:
            jax.block_until_ready(run.metrics)
            self.close()

    def close(self) -> None:
        """Stops a trace that is still running."""
        if self._is_tracing:
            self._is_tracing = False
            with writing(self._folder), self._staged:
                jax.profiler.stop_trace()
