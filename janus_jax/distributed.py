"""Processes that share a run: detecting a cluster from the environment, joining it, and dividing work in it.

`--distributed` looks for a cluster in this order:

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   set explicitly, for example by Kubernetes; under SLURM
                                                               the address alone may be set, for another port or network
  SLURM_PROCID                                                 a task that srun started
  TPU_WORKER_HOSTNAMES                                         a GKE TPU pod; jax reads the other variables
  none of these                                                a TPU VM; jax asks the metadata server
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from janus_jax.errors import JanusError, Preempted

_Result = TypeVar("_Result")

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_MEGASCALE = ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")

# Ports above the range that Linux uses for outgoing connections by default.
_FIRST_PORT, _PORTS = 61440, 4096

# Thousands of hosts do not start, pull an image or finish a save in the same minute.
_JOIN_SECONDS = 1800
# Longer than a host may stall in garbage collection or on a disk. A process that is silent for longer is dead.
_HEARTBEAT_SECONDS = 300


class Cluster:
    """A run of one process. `JaxCluster` is a run of several, whose output folder is on a shared file system."""

    index, count = 0, 1

    @property
    def is_first(self) -> bool:
        """Whether this process does the work that only one process may do."""
        return self.index == 0

    def share(self, numbers: Iterable[int]) -> list[int]:
        """Returns the numbers that this process handles. Every process may pass a different selection."""
        return [number for number in numbers if number % self.count == self.index]

    def run_on_all(self, action: Callable[[], _Result]) -> _Result:
        """Runs an action in every process and waits until all processes have finished it.

        Raises:
          JanusError: Another process failed.
        """
        return action()


class JaxCluster(Cluster):
    """All processes that `jax.distributed` has joined."""

    def __init__(self) -> None:
        import jax

        self.index, self.count = jax.process_index(), jax.process_count()

    def run_on_all(self, action: Callable[[], _Result]) -> _Result:
        import numpy as np
        from jax.experimental.multihost_utils import process_allgather

        failure = None
        try:
            result = action()
        # Any exception: without the gather below the other processes would wait forever.
        except Exception as error:
            failure = error
        failed = np.flatnonzero(process_allgather(np.array(failure is not None)))
        if failure is not None:
            raise failure
        if failed.size:
            raise JanusError(f"Process {failed[0]} of the cluster failed; its own log has the reason.")
        return result


def join_cluster() -> Cluster:
    """Joins the processes of a cluster. Call it before jax looks for devices.

    Raises:
      JanusError: No cluster was found, or its variables are incomplete.
      Preempted: Some processes of the cluster did not join in time.
    """
    import jax

    process = detect_cluster(os.environ)
    arguments: dict[str, Any] = {}
    if process is not None:
        arguments = {
            "coordinator_address": process.coordinator,
            "num_processes": process.count,
            "process_id": process.index,
            "local_device_ids": process.local_device,
            # jax's own detection takes one device per SLURM task, whatever is passed.
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_JOIN_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise Preempted(
            f"Not all processes of the cluster joined ({reason:.200}); start all of them again with the same command."
        ) from error
    except (ValueError, RuntimeError) as error:
        raise JanusError(
            f"--distributed finds no cluster ({str(error)[:200]}); start it under SLURM, on a TPU pod, or with "
            f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set."
        ) from error
    return JaxCluster()


@dataclass(frozen=True)
class ClusterProcess:
    """This process's part in a cluster.

    Attributes:
      coordinator: host:port of process 0.
      count: Number of processes.
      index: Index of this process.
      local_device: Index of the one visible device that this process uses; None: all visible devices.
    """

    coordinator: str
    count: int
    index: int
    local_device: int | None = None


def detect_cluster(environment: Mapping[str, str]) -> ClusterProcess | None:
    """Reads the cluster from environment variables. Returns None where jax detects it itself (TPUs).

    Raises:
      JanusError: Variables are missing or contradict each other; the message names them.
    """
    explicit, slurm = (
        {name for name in names if environment.get(name)} for names in (_EXPLICIT, (*_SLURM, "SLURM_JOB_ID"))
    )
    if explicit - {_EXPLICIT[0]} or (explicit and not slurm):
        _require(environment, _EXPLICIT, "they go together")
        return _read_process(environment, *_EXPLICIT)
    if slurm:
        _require(environment, _SLURM, "start the command with srun, which sets them, as launch/slurm/train.sbatch does")
        coordinator = environment.get(_EXPLICIT[0]) or _slurm_coordinator(environment)
        process = _read_process(
            {**environment, _EXPLICIT[0]: coordinator}, _EXPLICIT[0], "SLURM_NTASKS", "SLURM_PROCID"
        )
        return replace(process, local_device=_slurm_device(environment))
    if any(environment.get(name) for name in _MEGASCALE):
        _require(environment, _MEGASCALE, "they go together and identify the slices of a TPU run")
    if environment.get("TPU_WORKER_HOSTNAMES"):
        _require(environment, ("TPU_WORKER_ID",), "it goes with TPU_WORKER_HOSTNAMES")
    return None


def _require(environment: Mapping[str, str], names: tuple[str, ...], reason: str) -> None:
    missing = [name for name in names if not environment.get(name)]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise JanusError(f"--distributed finds an incomplete cluster: {', '.join(missing)} {are} not set; {reason}.")


def _read_process(environment: Mapping[str, str], address: str, count: str, index: str) -> ClusterProcess:
    coordinator = environment[address]
    if not re.fullmatch(r"\S+:\d+", coordinator):
        raise JanusError(f"{address} is {coordinator!r}; it must be host:port of the process with index 0.")
    for name in (count, index):
        if not environment[name].isdecimal():
            raise JanusError(f"{name} is {environment[name]!r}; it must be a whole number.")
    process = ClusterProcess(coordinator, int(environment[count]), int(environment[index]))
    if process.index >= process.count:
        raise JanusError(f"{index} is {process.index} and {count} is {process.count}; the index counts from 0.")
    return process


def _slurm_coordinator(environment: Mapping[str, str]) -> str:
    # The first host of a list such as "node7", "node[003-019,042]" or "node[1,2]-ib,other".
    first = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^\[,]*))?", environment["SLURM_STEP_NODELIST"])
    if first is None:
        raise JanusError(f"SLURM_STEP_NODELIST is {environment['SLURM_STEP_NODELIST']!r}; it must name the nodes.")
    job = environment.get("SLURM_JOB_ID", "0")
    port = _FIRST_PORT + int(job if job.isdecimal() else 0) % _PORTS
    return f"{''.join(filter(None, first.groups()))}:{port}"


def _slurm_device(environment: Mapping[str, str]) -> int | None:
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    # With --gpus-per-task each task sees only its own device.
    if tasks is None or int(tasks[0]) == 1 or len(visible) == 1:
        return None
    return int(environment["SLURM_LOCALID"])
