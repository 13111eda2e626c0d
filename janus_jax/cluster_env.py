"""Which cluster a process belongs to, by what its environment says.

In this order:

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   said outright, as Kubernetes and people do; under SLURM
                                                               the address alone, for another port or network
  SLURM_PROCID                                                 a task that srun started
  TPU_WORKER_HOSTNAMES                                         a pod of a TPU pool of GKE; jax reads the rest
  none of these                                                a machine of a TPU pod, as jax asks Google's metadata
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from janus_jax.errors import JanusError

_SAID = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_MEGASCALE = ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")

# Above what Linux gives to outgoing connections by itself.
_FIRST_PORT, _PORTS = 61440, 4096


@dataclass(frozen=True)
class Place:
    """Of a process among those that it joins.

    Attributes:
      coordinator: host:port of the process with index 0.
      count: how many processes there are.
      index: of this one.
      device: the one device that is its own, of those that it sees; None for all.
    """

    coordinator: str
    count: int
    index: int
    device: int | None = None


def find_place(environment: Mapping[str, str]) -> Place | None:
    """What the environment says; None where it leaves it to jax, on TPUs.

    Raises:
      JanusError: it says too little, or what cannot be; the sentence names the variable.
    """
    said, slurm = ({name for name in names if environment.get(name)} for names in (_SAID, (*_SLURM, "SLURM_JOB_ID")))
    if said - {_SAID[0]} or (said and not slurm):
        _require(environment, _SAID, "they go together")
        return _place(environment, *_SAID)
    if slurm:
        _require(environment, _SLURM, "start the command with srun, which sets them, as launch/slurm/train.sbatch does")
        coordinator = environment.get(_SAID[0]) or _slurm_coordinator(environment)
        found = _place({**environment, _SAID[0]: coordinator}, _SAID[0], "SLURM_NTASKS", "SLURM_PROCID")
        return replace(found, device=_slurm_device(environment))
    if any(environment.get(name) for name in _MEGASCALE):
        _require(environment, _MEGASCALE, "they go together, and tell the slices of a TPU run apart")
    if environment.get("TPU_WORKER_HOSTNAMES"):
        _require(environment, ("TPU_WORKER_ID",), "it goes with TPU_WORKER_HOSTNAMES")
    return None


def _require(environment: Mapping[str, str], names: tuple[str, ...], why: str) -> None:
    missing = [name for name in names if not environment.get(name)]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise JanusError(f"--distributed finds half a cluster: {', '.join(missing)} {are} not set; {why}.")


def _place(environment: Mapping[str, str], address: str, count: str, index: str) -> Place:
    coordinator = environment[address]
    if not re.fullmatch(r"\S+:\d+", coordinator):
        raise JanusError(f"{address} is {coordinator!r}; it must be host:port, of the process with index 0.")
    for name in (count, index):
        if not environment[name].isdecimal():
            raise JanusError(f"{name} is {environment[name]!r}; it must be a whole number.")
    place = Place(coordinator, int(environment[count]), int(environment[index]))
    if place.index >= place.count:
        raise JanusError(f"{index} is {place.index} and {count} is {place.count}; the index counts from 0.")
    return place


def _slurm_coordinator(environment: Mapping[str, str]) -> str:
    # "node7", "node[003-019,042]", "node[1,2]-ib,other": the first one.
    first = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^\[,]*))?", environment["SLURM_STEP_NODELIST"])
    if first is None:
        raise JanusError(f"SLURM_STEP_NODELIST is {environment['SLURM_STEP_NODELIST']!r}; it must name the nodes.")
    job = environment.get("SLURM_JOB_ID", "0")
    port = _FIRST_PORT + int(job if job.isdecimal() else 0) % _PORTS
    return f"{''.join(filter(None, first.groups()))}:{port}"


def _slurm_device(environment: Mapping[str, str]) -> int | None:
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    seen = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    # With --gpus-per-task each task sees its own alone.
    if tasks is None or int(tasks[0]) == 1 or len(seen) == 1:
        return None
    return int(environment["SLURM_LOCALID"])
