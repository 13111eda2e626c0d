"""Multi-process training over gloo on this machine."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from janus_jax.errors import ExitCode
from janus_jax.training.train_step import put_batch
from tests.commands.conftest import ROOT, environment
from tests.training import batches, runs, stages
from tests.training.test_trainer import logged

STEPS = 2
CONFIG = f"--config={ROOT / 'tests' / 'training' / 'runs.py'}"

# Each process passes its own sequences of one batch.
TRAINING = """
import json, sys
import jax
from janus_jax.distributed import join_cluster
join_cluster()
from janus_jax.sharding import make_mesh
from janus_jax.training.train_step import put_batch
from tests.training import batches, stages

steps, tensor = map(int, sys.argv[1:])
mesh = make_mesh(1, -1, tensor)
batch = batches.mixed()
share = len(batch.tokens) * tensor // jax.process_count()
first = jax.process_index() // tensor * share
share_of_batch = jax.tree.map(lambda leaf: leaf[first : first + share], batch)
state, losses = stages.state(mesh), []
for _ in range(steps):
    state, metrics = stages.step(mesh)(state, put_batch(share_of_batch, mesh))
    losses.append({name: float(value) for name, value in metrics.items()})
print(json.dumps(losses))
"""


# launch.train, killed by SIGKILL in step 3 when the checkpoint of step 2 is complete, or preempted at step 5 by SIGTERM
# to the last process.
DISTURBED = """
import os, pathlib, runpy, signal, sys, time
import jax
from janus_jax.training.preemption import Preemption

how, saved = sys.argv.pop(1), pathlib.Path(sys.argv.pop(1))
reached = Preemption.reached

def disturbed(self, step):
    if how == "killed" and step == 3:
        while not saved.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "preempted" and step == 5 and jax.process_index() == jax.process_count() - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return reached(self, step)

Preemption.reached = disturbed
sys.argv[0] = "launch.train"
runpy.run_module("launch.train", run_name="__main__", alter_sys=True)
"""


def run_processes(count, *command, is_expected=lambda codes: not any(codes)):
    """Runs processes with one device each, checks their exit codes and returns their outputs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(
                XLA_FLAGS="--xla_force_host_platform_device_count=1",
                JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES=str(count),
                JAX_PROCESS_ID=str(rank),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        ends = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert is_expected([process.returncode for process in processes]), ends
    return [out for out, _ in ends]


@pytest.mark.nightly
@pytest.mark.parametrize(("count", "tensor"), [(2, 1), (4, 2)])
def test_processes_have_the_losses_of_one_process(count, tensor):
    state, expected = stages.state(), []
    for _ in range(STEPS):
        state, metrics = stages.step()(state, put_batch(batches.mixed(), None))
        expected.append({name: float(value) for name, value in metrics.items()})
    for out in run_processes(count, "-c", TRAINING, STEPS, tensor):
        found = json.loads(out.splitlines()[-1])
        for one, other in zip(found, expected, strict=True):
            for name in other:
                np.testing.assert_allclose(one[name], other[name], rtol=1e-5, err_msg=name)


@pytest.mark.nightly
def test_command_resumes_with_two_processes(tmp_path):
    """The command finishes, and repeats its last steps bit for bit from an earlier checkpoint."""
    workdir = tmp_path / "run"
    samples = """(('','Say a word.'),)""", """('A boat.',)"""
    start = "--config.stages.stage_1.initialisation"
    command = (
        *("-m", "launch.train", CONFIG, f"--workdir={workdir}", "--distributed", *runs.flags()),
        *(f"{start}.source=model", f"{start}.model={runs.models() / 'model'}"),
        *("--config.sources.generation.held_out=train[:4]", "--config.samples.max_new_tokens=4"),
        *(f"--config.samples.{name}={value}" for name, value in zip(("questions", "prompts"), samples, strict=True)),
    )
    run_processes(2, *command)
    undisturbed, stage = logged(workdir, "loss", "grad_norm", "held_out"), workdir / "stage_1"
    assert {line["step"] for line in undisturbed} == {1, 2, 3, 4}
    assert sorted(os.listdir(stage / "checkpoints")) == ["2", "4"]
    image = (stage / "samples" / "step_4" / "1.png").read_bytes()

    for removed in (stage / "checkpoints" / "4", stage / "samples"):
        shutil.rmtree(removed)
    outputs = run_processes(2, *command)
    assert "step 3/4" in outputs[0]
    assert "step" not in outputs[1]
    assert logged(workdir, "loss", "grad_norm", "held_out") == undisturbed
    assert sorted(os.listdir(stage / "checkpoints")) == ["2", "4"]
    assert (stage / "samples" / "step_4" / "1.png").read_bytes() == image


@pytest.mark.nightly
def test_run_resumes_with_fewer_and_more_processes(tmp_path):
    """Four processes are killed, two resume and are preempted, four finish, with the losses of an undisturbed run."""

    def command(workdir):
        stage = {"batch_size": 8, "steps": 12, "initialisation.source": "model"}
        stage["initialisation.model"] = runs.models() / "model"
        return (
            *(f"--workdir={workdir}", "--distributed", CONFIG, *runs.flags()),
            *(f"--config.stages.stage_1.{name}={value}" for name, value in stage.items()),
        )

    run_processes(4, "-m", "launch.train", *command(tmp_path / "undisturbed"))

    workdir = tmp_path / "disturbed"
    checkpoints = workdir / "stage_1" / "checkpoints"
    disturbed = ("-c", DISTURBED)
    # Processes that are alive when the first is killed may fail because of that.
    run_processes(4, *disturbed, "killed", checkpoints / "2", *command(workdir), is_expected=all)
    assert os.listdir(checkpoints) == ["2"]
    run_processes(
        2, *disturbed, "preempted", "-", *command(workdir), is_expected=lambda codes: codes == [ExitCode.PREEMPTED] * 2
    )
    stopped = max(map(int, os.listdir(checkpoints)))
    assert 5 <= stopped < 12
    run_processes(4, "-m", "launch.train", *command(workdir))

    found, expected = (logged(folder, "loss", "grad_norm") for folder in (workdir, tmp_path / "undisturbed"))
    assert [line["step"] for line in found] == list(range(1, 13))
    for one, other in zip(found, expected, strict=True):
        for name in other:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6, err_msg=f"{name} {one['step']}")
