"""Clusters of several processes: detects a cluster, joins it, and divides work among its processes.

`--distributed` detects the cluster by the first of these environment variables that is set:

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   set by the user, for example with Kubernetes; under SLURM
                                                               the address alone selects another port or network
  SLURM_PROCID                                                 set by srun
  TPU_WORKER_HOSTNAMES                                         set in a GKE TPU pod; jax reads the other variables

If none is set, jax asks the metadata server of a TPU VM.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from janus_jax.coordination import combine, explain_aborts
from janus_jax.errors import JanusError, Preempted

_Result = TypeVar("_Result")

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_MEGASCALE = ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")

# Ports above the range that Linux uses for outgoing connections by default.
_FIRST_PORT, _PORTS = 61440, 4096

# Long, because thousands of hosts do not start, pull an image or finish a save at the same time.
_JOIN_SECONDS = 1800
# The last resort, because jax then aborts the processes with a stack trace in C++. A training run finds lost processes
# earlier (`training.peers`).
_HEARTBEAT_SECONDS = 300
_LEAVE_SECONDS = 600


class Cluster:
    """Coordinates the processes of a run. This class is for a single process, `JaxCluster` for several.

    The processes write to one output folder on a shared file system.

    Attributes:
      index: Index of this process.
      count: Number of processes.
    """

    index, count = 0, 1

    @property
    def is_primary(self) -> bool:
        """Whether this process does the work that only one process may do, such as writing summaries."""
        return self.index == 0

    def share(self, indices: Iterable[int]) -> list[int]:
        """Returns those of the indices that this process handles: the ones congruent to `index` modulo `count`."""
        return [index for index in indices if index % self.count == self.index]

    def run_on_all(self, action: Callable[[], _Result]) -> _Result:
        """Runs an action in every process, waits until all processes are done, and returns this process's result.

        Raises:
          JanusError: Another process failed.
        """
        return action()


class JaxCluster(Cluster):
    """Coordinates the processes that `jax.distributed` has joined."""

    def __init__(self) -> None:
        import jax

        self.index, self.count = jax.process_index(), jax.process_count()

    def run_on_all(self, action: Callable[[], _Result]) -> _Result:
        failure = None
        try:
            result = action()
        # Catches any exception, because the other processes wait until this process calls `combine`.
        except Exception as error:
            failure = error
        # No limit, because an action may take hours. jax ends all processes if one is lost.
        reason = None if failure is None else " ".join(str(failure).split()) or type(failure).__name__
        failed = combine("run_on_all", {"index": self.index, "reason": reason}, _first_failure, math.inf)
        if failure is not None:
            raise failure
        if failed:
            raise JanusError(f"Process {failed['index']} of the cluster has failed: {failed['reason']:.500}")
        return result


def _first_failure(processes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((process for process in processes if process["reason"]), {})


def join_cluster() -> Cluster:
    """Joins this process to its cluster. Must be called before jax initializes its devices.

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
            # jax's own detection would override local_device_ids with one device per SLURM task.
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_LEAVE_SECONDS,
        )
        explain_aborts()
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
    """How this process joins a cluster.

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
    """Returns what the environment variables say about the cluster, or None if jax detects it itself (TPUs).

    Raises:
      JanusError: Variables are missing or invalid; the message names them.
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
