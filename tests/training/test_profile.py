"""Profiler traces."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from janus_jax.errors import JanusError
from janus_jax.training.callbacks.base import TrainingRun
from janus_jax.training.callbacks.profiling import Profiling
from janus_jax.training.console import Console
from janus_jax.training.metric_writer import MetricWriter
from janus_jax.training.recipe import Intervals


def run(folder, first, count, steps=4, fails_at=None):
    """Runs steps with profiling; returns the steps after which the trace exists."""
    traced = []
    with contextlib.closing(Profiling(folder, first, count)) as profiling:
        for step in range(1, steps + 1):
            profiling.before_step(step)
            if step == fails_at:
                raise InterruptedError
            metrics = {"loss": jax.jit(jnp.sin)(jnp.ones(8))}
            profiling.after_step(TrainingRun({}, step, steps, MetricWriter(None, Console(steps)), metrics=metrics))
            if list(folder.rglob("*.xplane.pb")):
                traced.append(step)
    return traced


def test_requested_steps_are_traced(tmp_path):
    assert run(tmp_path, first=2, count=2) == [3, 4]


def test_nothing_is_traced_by_default(tmp_path):
    assert run(tmp_path, first=0, count=0) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_interrupted_trace_is_written(tmp_path):
    with pytest.raises(InterruptedError):
        run(tmp_path, first=1, count=3, fails_at=2)
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("profile", [(3,), (0, 2), (-1, 1), (1, -1)])
def test_invalid_profile_steps_are_rejected(profile):
    with pytest.raises(JanusError, match=r"config\.intervals\.profile is"):
        Intervals(profile=profile)
