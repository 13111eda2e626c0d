"""Detection of a cluster from environment variables; tests/training/test_processes.py joins one."""

import pytest

from janus_jax.distributed import ClusterProcess, detect_cluster
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
EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "head:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


@pytest.mark.parametrize(
    ("environment", "process"),
    [
        (EXPLICIT, ClusterProcess("head:1234", 4, 3)),
        (SLURM | EXPLICIT, ClusterProcess("head:1234", 4, 3)),
        (SLURM, ClusterProcess("node003:61443", 18, 5)),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:99"}, ClusterProcess("10.0.0.1:99", 18, 5)),
        ({}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, None),
    ],
)
def test_cluster_is_detected(environment, process):
    assert detect_cluster(environment) == process


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("node7", "node7"), ("a1,b2", "a1"), ("n[1-4]", "n1"), ("n[07,9],m1", "n07"), ("r1-[3-4]-ib,x", "r1-3-ib")],
)
def test_first_node_is_the_coordinator(nodes, host):
    assert detect_cluster(SLURM | {"SLURM_STEP_NODELIST": nodes}).coordinator == f"{host}:61443"


@pytest.mark.parametrize(
    ("tasks", "visible", "device"), [("8(x4)", "0,1,2,3", 2), ("8(x4)", "0", None), ("1(x4)", "0,1,2,3", None)]
)
def test_a_task_uses_one_device_only_if_tasks_share_visible_devices(tasks, visible, device):
    shared = {"SLURM_STEP_TASKS_PER_NODE": tasks, "CUDA_VISIBLE_DEVICES": visible, "SLURM_LOCALID": "2"}
    assert detect_cluster(SLURM | shared).local_device == device


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "head:1"}, ["JAX_NUM_PROCESSES, JAX_PROCESS_ID are not set"]),
        ({"JAX_PROCESS_ID": "0", "SLURM_JOB_ID": "1"}, ["JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES are not set"]),
        ({"SLURM_JOB_ID": "1"}, ["SLURM_PROCID", "srun"]),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, ["TPU_WORKER_ID is not set"]),
        ({"MEGASCALE_NUM_SLICES": "2"}, ["MEGASCALE_COORDINATOR_ADDRESS, MEGASCALE_SLICE_ID"]),
        (EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "head"}, ["JAX_COORDINATOR_ADDRESS is 'head'", "host:port"]),
        (EXPLICIT | {"JAX_NUM_PROCESSES": "four"}, ["JAX_NUM_PROCESSES is 'four'"]),
        (EXPLICIT | {"JAX_PROCESS_ID": "4"}, ["JAX_PROCESS_ID is 4", "JAX_NUM_PROCESSES is 4"]),
    ],
)
def test_incomplete_cluster_variables_are_reported(environment, words):
    with pytest.raises(JanusError) as error:
        detect_cluster(environment)
    assert all(word in str(error.value) for word in words), error.value
