"""Which cluster an environment stands for; nothing is joined here (tests/train/test_processes.py does)."""

import pytest

from janus_jax.cluster_env import Place, find_place
from janus_jax.errors import JanusError

SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "node[003-019,042]",
    "SLURM_NTASKS": "18",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x18)",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
SAID = {"JAX_COORDINATOR_ADDRESS": "head:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        (SAID, Place("head:1234", 4, 3)),
        (SLURM | SAID, Place("head:1234", 4, 3)),
        (SLURM, Place("node003:61443", 18, 5)),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:99"}, Place("10.0.0.1:99", 18, 5)),
        ({}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, None),
    ],
)
def test_a_place_is_found(environment, place):
    assert find_place(environment) == place


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("node7", "node7"), ("a1,b2", "a1"), ("n[1-4]", "n1"), ("n[07,9],m1", "n07"), ("r1-[3-4]-ib,x", "r1-3-ib")],
)
def test_the_first_node_coordinates(nodes, host):
    assert find_place(SLURM | {"SLURM_STEP_NODELIST": nodes}).coordinator == f"{host}:61443"


@pytest.mark.parametrize(
    ("tasks", "seen", "device"), [("8(x4)", "0,1,2,3", 2), ("8(x4)", "0", None), ("1(x4)", "0,1,2,3", None)]
)
def test_a_task_takes_one_device_only_where_tasks_share_those_they_see(tasks, seen, device):
    shared = {"SLURM_STEP_TASKS_PER_NODE": tasks, "CUDA_VISIBLE_DEVICES": seen, "SLURM_LOCALID": "2"}
    assert find_place(SLURM | shared).device == device


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "head:1"}, ["JAX_NUM_PROCESSES, JAX_PROCESS_ID are not set"]),
        ({"JAX_PROCESS_ID": "0", "SLURM_JOB_ID": "1"}, ["JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES are not set"]),
        ({"SLURM_JOB_ID": "1"}, ["SLURM_PROCID", "srun"]),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, ["TPU_WORKER_ID is not set"]),
        ({"MEGASCALE_NUM_SLICES": "2"}, ["MEGASCALE_COORDINATOR_ADDRESS, MEGASCALE_SLICE_ID"]),
        (SAID | {"JAX_COORDINATOR_ADDRESS": "head"}, ["JAX_COORDINATOR_ADDRESS is 'head'", "host:port"]),
        (SAID | {"JAX_NUM_PROCESSES": "four"}, ["JAX_NUM_PROCESSES is 'four'"]),
        (SAID | {"JAX_PROCESS_ID": "4"}, ["JAX_PROCESS_ID is 4", "JAX_NUM_PROCESSES is 4"]),
    ],
)
def test_half_a_cluster_is_told_in_one_sentence(environment, words):
    with pytest.raises(JanusError) as error:
        find_place(environment)
    assert all(word in str(error.value) for word in words), error.value
