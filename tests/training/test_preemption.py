import json
import os
import queue
import signal
import socket
import subprocess
import sys

import pytest

from janus_jax.errors import ExitCode, Interrupted, Preempted
from janus_jax.training.checkpointing import Checkpoints
from janus_jax.training.preemption import Preemption
from janus_jax.training.state import abstract_state
from tests.training import toy


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_is_noticed_inside_the_context(number):
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), number)
        assert preemption.reached(2)
        assert preemption.reached(3)
    assert signal.getsignal(number) == before
    assert isinstance(preemption.stopped(3), Preempted)


@pytest.fixture
def interruptible():
    """Enables SIGINT, which processes in the background of a shell ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_is_noticed_with_a_notice(interruptible):
    notices = queue.Queue()
    with Preemption(notices.put) as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reached(1)
        assert "Press Ctrl-C again" in notices.get(timeout=10)
        assert isinstance(preemption.stopped(1), Interrupted)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_ignored_interrupts_stay_ignored(interruptible):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert not preemption.reached(1)


# Compiled code that never returns to Python: a mutex that its thread locks twice.
BLOCKED = """
import ctypes, signal
from janus_jax.training.preemption import Preemption
signal.signal(signal.SIGINT, signal.default_int_handler)
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
with Preemption(lambda notice: print("notice", flush=True)):
    print("ready", flush=True)
    lock(mutex)
    lock(mutex)
"""


def test_second_interrupt_ends_blocked_processes():
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", BLOCKED], env=variables, stdout=subprocess.PIPE, text=True) as process:
        for line in ("ready", "notice"):
            assert process.stdout.readline().strip() == line
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == ExitCode.INTERRUPTED


# Two processes that train together until one of them is preempted.
TRAINING = """
import json, os, signal, sys, time
import jax
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from janus_jax.sharding import make_mesh, use_mesh
from janus_jax.training.checkpointing import Checkpoints
from janus_jax.training.preemption import Preemption
from janus_jax.training.state import abstract_state
from tests.training import toy

rank, mesh = jax.process_index(), make_mesh(1, 2, 1)
with use_mesh(mesh), Checkpoints(sys.argv[3]) as checkpoints, Preemption() as preemption:
    abstract = abstract_state(toy.make, mesh, 0)
    restored = checkpoints.restore(abstract)
    result = {"from": restored and [restored.step, restored.data_state]}
    state = restored.state if restored else toy.init_sharded(toy.make, abstract, 0)
    step = restored.step if restored else 0
    train = jax.jit(toy.step, static_argnums=1, donate_argnums=0)
    while True:
        state = train(state, 0)
        step += 1
        if step == 3:
            checkpoints.save(step, state, {"rank": rank}, {})
        if rank == 1 and step == 5:
            os.kill(os.getpid(), getattr(signal, sys.argv[4]))
        if preemption.reached(step):
            break
        time.sleep(0.01)
        assert step < 1000
    checkpoints.save(step, state, {"rank": rank, "step": step}, {})
    result["error"] = type(preemption.stopped(step)).__name__
print(json.dumps(result | {"stopped": step}))
"""


def train(folder, number):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINING, address, str(rank), folder, number],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ends
    return [json.loads(out.splitlines()[-1]) for out, _ in ends], ends[0][1]


@pytest.mark.nightly
def test_processes_stop_at_the_same_step_and_agree_on_damage(tmp_path):
    folder = tmp_path / "checkpoints"
    (one, other), _ = train(folder, "SIGINT")
    assert one["from"] is None
    assert one["error"] == other["error"] == "Interrupted"
    assert one["stopped"] == other["stopped"] > 5

    # Damages a file that only one process verifies.
    victim = max((file for file in (folder / str(one["stopped"])).rglob("*.ocdbt")), key=str)
    victim.write_bytes(b"")
    again, errors = train(folder, "SIGUSR1")
    assert [one["from"] for one in again] == [[3, {"rank": 0}], [3, {"rank": 1}]]
    assert again[0]["stopped"] == again[1]["stopped"]
    assert [one["error"] for one in again] == ["Preempted"] * 2
    assert "is damaged" in errors

    # One process restores what two processes saved.
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(abstract_state(toy.make, None, 0))
    assert restored.step == again[0]["stopped"]
    assert restored.data_state == {"rank": 0, "step": restored.step}
