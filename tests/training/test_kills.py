"""A run killed with -9 at any moment resumes with the same loss curve and last state."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
import pytest

from janus_jax.errors import ExitCode
from tests.commands.conftest import ROOT, environment
from tests.training import runs

CONFIG = ROOT / "tests" / "training" / "runs.py"
# `python -m launch.train` without PyTorch, which TensorBoard's writer would import for seconds.
COMMAND = """
import runpy, sys
sys.modules["torch"] = None
runpy.run_module("launch.train", run_name="__main__", alter_sys=True)
"""
TIMEOUT = 600  # seconds


@functools.cache
def compilation_cache():
    """A folder for the compilation cache that all runs share."""
    return tempfile.TemporaryDirectory()


class Run:
    """Runs of janus-train in one workdir, and the files there. Every second step is saved."""

    command = COMMAND
    kind = "janus"

    def __init__(self, folder, name, *flags, workdir=None):
        self.workdir = workdir or folder / name
        self.stage = self.workdir / "stage_1"
        self.checkpoints = self.stage / "checkpoints"
        self.log = folder / f"{name}.log"
        start = "--config.stages.stage_1.initialisation"
        settings = (
            *("--config.intervals.save=2", *runs.flags(self.kind)),
            *(f"{start}.source=model", f"{start}.model={runs.models() / 'model'}", *flags),
        )
        config = f"--config={CONFIG}:{self.kind}"
        self._command = [sys.executable, "-c", self.command, config, f"--workdir={self.workdir}", *settings]
        self._environment = environment(
            XLA_FLAGS="--xla_force_host_platform_device_count=1",
            JAX_COMPILATION_CACHE_DIR=compilation_cache().name,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )

    def start(self):
        with self.log.open("a") as log:
            return subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def finish(self):
        with self.start() as process:
            assert process.wait(TIMEOUT) == 0, self.log.read_text()

    def kill(self, moment, rng):
        """Starts and kills the command; returns whether a save was interrupted, or None if the command had finished."""
        with self.start() as process:
            try:
                moment(self, process, rng)
            finally:
                process.kill()
        # A finished process returns 0.
        assert process.returncode in (0, -signal.SIGKILL), self.log.read_text()
        return None if process.returncode == 0 else bool(self.unfinished)

    @property
    def saved(self):
        """Step of the newest checkpoint; 0 for none."""
        return max((int(name) for name in self._names if name.isdecimal()), default=0)

    @property
    def unfinished(self):
        return [name for name in self._names if "tmp" in name]

    @property
    def curve(self):
        """Metrics by step, without rates. For a repeated step these are the last ones."""
        compared = re.compile("loss|tokens/(?!s$)|grad_norm|learning_rate|skipped")
        lines = map(json.loads, (self.stage / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: {name: line[name] for name in line if compared.match(name)} for line in lines}

    def last(self, step):
        """Arrays and data position of a checkpoint."""
        folder = self.checkpoints / str(step)
        content = json.loads((folder / "run" / "metadata").read_text())
        return ocp.StandardCheckpointer().restore(folder / "state"), content["data"]

    @property
    def _names(self):
        return os.listdir(self.checkpoints) if self.checkpoints.exists() else []


def wait(process, until):
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and not until():
        assert time.monotonic() < deadline
        time.sleep(0.003)


def while_starting(run, process, rng):
    time.sleep(rng.uniform(0, 5))


def while_stepping(run, process, rng):
    before = run.saved
    wait(process, lambda: run.saved > before)
    time.sleep(rng.uniform(0, 0.3))


def while_saving(run, process, rng):
    before = run.saved
    # The unfinished save of an earlier kill is removed before a new checkpoint appears.
    wait(process, lambda: run.saved > before)
    wait(process, lambda: run.unfinished)
    time.sleep(rng.uniform(0, 0.02))


class EditingRun(Run):
    """Runs of janus-train on edits."""

    kind = "edit"


def assert_killed_runs_match(folder, moments, steps, *flags, make=Run):
    flags = (f"--config.stages.stage_1.steps={steps}", *flags)
    undisturbed, rng = make(folder, "undisturbed", *flags), np.random.default_rng(0)
    undisturbed.finish()
    assert sorted(undisturbed.curve) == list(range(1, steps + 1))
    expected = undisturbed.last(steps)

    moments, interrupted, number = list(moments), 0, 0
    while moments:
        number += 1
        run = make(folder, f"killed_{number}", *flags)
        while moments:
            interrupted_a_save = run.kill(moments[0], rng)
            if interrupted_a_save is None:
                break
            interrupted += interrupted_a_save
            moments.pop(0)
        run.finish()
        assert run.curve == undisturbed.curve
        arrays, data = run.last(steps)
        jax.tree.map(np.testing.assert_array_equal, arrays, expected[0])
        assert data == expected[1]
        assert not (run.checkpoints / "damaged").exists()
        assert not run.unfinished
    return interrupted


@pytest.mark.slow
def test_dead_data_worker_ends_the_run_with_a_message(tmp_path):
    run = Run(tmp_path, "run", "--config.stages.stage_1.steps=100000", "--config.resources.data_workers=1")
    with run.start() as process:
        try:
            wait(process, lambda: run.saved)
            # Each thread of the process has children.
            files = Path(f"/proc/{process.pid}/task").glob("*/children")
            children = [pid for file in files for pid in file.read_text().split()]
            (worker,) = (int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
            os.kill(worker, signal.SIGKILL)
            assert process.wait(30) == ExitCode.USER_ERROR
        finally:
            process.kill()
    last = run.log.read_text().splitlines()[-1]
    assert re.search(rf"janus-train: .*data worker \(process {worker}\) has ended by signal 9", last)


@pytest.mark.slow
def test_run_killed_ten_times_resumes_bit_for_bit(tmp_path):
    moments = [while_saving, while_stepping] * 4 + [while_starting, while_saving]
    np.random.default_rng(1).shuffle(moments)
    interrupted = assert_killed_runs_match(tmp_path, moments, 50, "--config.resources.data_workers=1")
    assert interrupted


@pytest.mark.nightly
def test_run_on_edits_killed_during_steps_and_saves_resumes_bit_for_bit(tmp_path):
    assert_killed_runs_match(tmp_path, [while_saving, while_stepping], 8, make=EditingRun)
