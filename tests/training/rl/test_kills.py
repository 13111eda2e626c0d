"""A run of reinforcement learning that is killed in the middle of a step resumes bit for bit; two processes."""

import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.commands.conftest import ROOT, environment
from tests.training import runs
from tests.training.rl import recipes
from tests.training.test_kills import Run
from tests.training.test_processes import run_processes
from tests.training.test_trainer import logged

CONFIG = f"--config={ROOT / 'tests' / 'training' / 'rl' / 'recipes.py'}"
NAMES = ("loss", "kl", "entropy", "clip_share", "reward", "grad_norm", "learning_rate")

# launch.train, which kills itself in a step: after the first part of its rollout, or after the first of its updates.
KILLED = """
import os, pathlib, runpy, signal, sys, time
sys.modules["torch"] = None
from janus_jax.training.rl import rollouts, task
from janus_jax.training.train_step import CompiledStep

moment, number, saved = sys.argv.pop(1), int(sys.argv.pop(1)), pathlib.Path(sys.argv.pop(1))
owner, name = {
    "rollout": (rollouts.RolloutSampler, "_sample"),
    "reward": (task, "compute_rewards"),
    "update": (CompiledStep, "__call__"),
}[moment]
original, calls = getattr(owner, name), 0

def counted(*args):
    global calls
    result = original(*args)
    calls += 1
    if calls == number:
        while not saved.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, counted)
sys.argv[0] = "launch.train"
runpy.run_module("launch.train", run_name="__main__", alter_sys=True)
"""


def command(workdir):
    model, tokenizer = runs.models() / "model", runs.data() / "tokenizer"
    start = f"--config.stages.stage_1.initialisation.model={model}"
    return CONFIG, f"--workdir={workdir}", start, f"--config.tokenizer={tokenizer}"


def launch(*arguments):
    environ = environment(XLA_FLAGS="--xla_force_host_platform_device_count=1")
    return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_runs_killed_in_a_step_resume_bit_for_bit(tmp_path):
    """A step has two parts of the rollout and two updates; step 3 is killed in each kind of work."""
    undisturbed = launch("-m", "launch.train", *command(tmp_path / "undisturbed"))
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected = logged(tmp_path / "undisturbed", *NAMES)
    assert [line["step"] for line in expected] == [1, 2, 3, 4]
    reader = Run(tmp_path, "undisturbed")
    arrays, data = reader.last(recipes.STEPS)
    # The first call of a resumed run is that of step 3, because step 2 is saved.
    for number, (moment, call) in enumerate([("rollout", 5), ("reward", 1), ("update", 1)]):
        saved = tmp_path / "killed" / "stage_1" / "checkpoints" / "2"
        killed = launch("-c", KILLED, moment, str(call), str(saved), *command(tmp_path / "killed"))
        assert killed.returncode == -signal.SIGKILL, (number, killed.stderr)
    resumed = launch("-m", "launch.train", *command(tmp_path / "killed"))
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 2" in resumed.stdout + resumed.stderr
    assert logged(tmp_path / "killed", *NAMES) == expected
    found = Run(tmp_path, "killed").last(recipes.STEPS)
    jax.tree.map(np.testing.assert_array_equal, found[0], arrays)
    assert found[1] == data


@pytest.mark.nightly
def test_two_processes_have_the_metrics_of_one(tmp_path):
    single = launch("-m", "launch.train", *command(tmp_path / "single"))
    assert single.returncode == 0, single.stderr
    run_processes(2, "-m", "launch.train", *command(tmp_path / "double"), "--distributed")
    found, expected = (logged(tmp_path / name, *NAMES) for name in ("double", "single"))
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    for one, other in zip(found[:2], expected, strict=False):
        for name in other:
            np.testing.assert_allclose(one[name], other[name], rtol=5e-3, atol=1e-4, err_msg=f"{name} {one['step']}")
