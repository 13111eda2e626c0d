"""Messages and barriers between two processes."""

import json
import signal
import socket
import subprocess
import sys

import pytest

from janus_jax import coordination
from janus_jax.errors import ExitCode
from tests.commands.conftest import environment

PROCESS = """
import json, os, signal, time
from janus_jax import coordination
from janus_jax.distributed import join_cluster
from janus_jax.errors import Stalled

join_cluster()
index, found = coordination.process_index(), {}
for round in range(3):
    coordination.barrier("meet", 60)
    found["combined"] = coordination.combine("values", {"process": index, "round": round}, list, 60)
if index == 0:
    try:
        coordination.barrier("late", 1)
    except Stalled as error:
        found["late"] = str(error)
    coordination.report_failure(3, "one")
    coordination.report_failure(4, "two")
    coordination.publish("done", {"at": 1})
    coordination.publish("done", {"at": 2})
while not coordination.published("done"):
    time.sleep(0.05)
found |= {"failure": coordination.reported_failure(), "done": coordination.published("done")}
print(json.dumps(found), flush=True)
if index == 0:
    while len(coordination.published("printed")) < 1:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
coordination.publish("printed", {})
time.sleep(120)
"""


@pytest.fixture(scope="module")
def processes():
    """Exit code, JSON output and errors of two processes, the first of which kills itself at the end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env=environment(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        ends = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(out for out, _ in ends), ends
    return [(process.returncode, json.loads(out), err) for process, (out, err) in zip(started, ends, strict=True)]


def test_processes_combine_values_in_order(processes):
    expected = [{"process": 0, "round": 2}, {"process": 1, "round": 2}]
    assert [found["combined"] for _, found, _ in processes] == [expected] * 2


def test_barrier_names_the_process_that_is_late(processes):
    assert processes[0][1]["late"].startswith("Process 1 of 2 did not arrive at 'late' within 1 s; ")


def test_first_failure_and_last_value_are_kept(processes):
    assert [(found["failure"], found["done"]) for _, found, _ in processes] == [([3, "one"], {"0": {"at": 2}})] * 2


def test_loss_of_the_coordinator_ends_the_others_with_a_sentence(processes):
    (killed, *_), (code, _, errors) = processes
    assert (killed, code) == (-signal.SIGKILL, ExitCode.STALLED)
    assert errors.splitlines()[-1].startswith("Process 0 of the cluster, at localhost:")


def test_a_single_process_does_not_wait():
    coordination.barrier("alone", 0)
    assert coordination.combine("alone", {"a": (1,)}, list) == [{"a": [1]}]


@pytest.mark.parametrize(
    ("indices", "phrase"),
    [
        ([3], "Process 3"),
        ([1, 3, 7], "Processes 1, 3 and 7"),
        (list(range(10)), "Processes 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"),
    ],
)
def test_processes_are_named(indices, phrase):
    assert coordination.describe_processes(indices) == phrase
