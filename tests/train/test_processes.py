"""Several processes that train together, joined over gloo on this machine: the losses of one, and the whole command."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from janus_jax.train.step import put_batch
from tests.launch.conftest import ROOT, environment
from tests.train import batches, runs, stages
from tests.train.test_loop import told

STEPS = 2
CONFIG = f"--config={ROOT / 'tests' / 'train' / 'runs.py'}"

# Each process gives its own rows of the one batch.
TRAINING = """
import json, sys
import jax
from launch import cli
cli.join_cluster()
from janus_jax.sharding import make_mesh
from janus_jax.train.step import put_batch
from tests.train import batches, stages

steps, tensor = map(int, sys.argv[1:])
mesh = make_mesh(1, -1, tensor)
batch = batches.mixed()
share = len(batch.tokens) * tensor // jax.process_count()
first = jax.process_index() // tensor * share
mine = jax.tree.map(lambda rows: rows[first : first + share], batch)
state, losses = stages.state(mesh), []
for _ in range(steps):
    state, metrics = stages.step(mesh)(state, put_batch(mine, mesh))
    losses.append({name: float(value) for name, value in metrics.items()})
print(json.dumps(losses))
"""


def together(count, *command):
    """What each of `count` processes, of one device each, prints."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(
                XLA_FLAGS="--xla_force_host_platform_device_count=1",
                JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS="0",
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
    assert [process.returncode for process in processes] == [0] * count, ends
    return [out for out, _ in ends]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "tensor"), [(2, 1), (4, 2)])
def test_processes_have_the_losses_of_one(count, tensor):
    state, expected = stages.state(), []
    for _ in range(STEPS):
        state, metrics = stages.step()(state, put_batch(batches.mixed(), None))
        expected.append({name: float(value) for name, value in metrics.items()})
    for out in together(count, "-c", TRAINING, STEPS, tensor):
        found = json.loads(out.splitlines()[-1])
        for one, other in zip(found, expected, strict=True):
            for name in other:
                np.testing.assert_allclose(one[name], other[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_the_command_goes_on_with_two_processes(tmp_path):
    """It comes to its end with checkpoints and samples, and once more, bit for bit, from the checkpoint before."""
    workdir = tmp_path / "run"
    samples = """(('','Say a word.'),)""", """('A boat.',)"""
    start = "--config.stages.stage_1.initialisation"
    command = (
        *("-m", "launch.train", CONFIG, f"--workdir={workdir}", "--distributed", *runs.flags()),
        *(f"{start}.source=model", f"{start}.model={runs.models() / 'model'}"),
        *("--config.sources.generation.held_out=train[:4]", "--config.samples.max_new_tokens=4"),
        *(f"--config.samples.{name}={value}" for name, value in zip(("questions", "prompts"), samples, strict=True)),
    )
    together(2, *command)
    undisturbed, stage = told(workdir, "loss", "grad_norm", "held_out"), workdir / "stage_1"
    assert {line["step"] for line in undisturbed} == {1, 2, 3, 4}
    assert sorted(os.listdir(stage / "checkpoints")) == ["2", "4"]
    drawn = (stage / "samples" / "step_4" / "1.png").read_bytes()

    for gone in (stage / "checkpoints" / "4", stage / "samples"):
        shutil.rmtree(gone)
    outputs = together(2, *command)
    assert "step 3/4" in outputs[0]
    assert "step" not in outputs[1]
    assert told(workdir, "loss", "grad_norm", "held_out") == undisturbed
    assert sorted(os.listdir(stage / "checkpoints")) == ["2", "4"]
    assert (stage / "samples" / "step_4" / "1.png").read_bytes() == drawn
