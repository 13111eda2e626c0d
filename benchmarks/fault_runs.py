"""Runs a training command in several processes on this machine, with a fault in one of them, and reads its results."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.fault_injection import BUCKET_KINDS, Fault
from janus_jax.training.checkpoint_files import finished_steps
from tests.bucket_server import BucketServer

TIMEOUT = 1500.0  # seconds until a run counts as hanging


@dataclass
class Ended:
    """A process that has ended: exit code, seconds since the epoch, and output."""

    code: int
    time: float
    log: str


class Cluster:
    """Context manager that runs `janus-train --distributed` in several processes with one device each.

    The processes are forks of one that has imported the packages (`benchmarks.fault_injection`).

    Args:
      count: Number of processes.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        variables = {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_NUM_PROCESSES": str(count),
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fault_injection"],
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.stdin.close()  # type: ignore[union-attr]
        self._server.wait()

    def run(
        self,
        arguments: Sequence[str],
        logs: Path,
        *,
        fault: Fault | None = None,
        bucket: BucketServer | None = None,
        timeout: float = TIMEOUT,
    ) -> list[Ended]:
        """Runs the command until all processes have ended.

        A process that is stopped is killed when all others have ended.

        Args:
          arguments: Arguments of the command.
          logs: Folder for the output.
          fault: Fault of one of the processes.
          bucket: Server of the bucket, for faults of a bucket. After the fault, it answers the process with errors.
          timeout: Seconds after which all processes are killed.
        """
        variables: list[dict[str, str]] = [{} for _ in range(self._count)]
        if fault is not None and fault.kind in BUCKET_KINDS and bucket is not None:
            with bucket.door(fails_if=Path(fault.mark).exists) as variables[fault.process]:
                return self._run(arguments, logs, fault, variables, timeout)
        return self._run(arguments, logs, fault, variables, timeout)

    def _run(
        self,
        arguments: Sequence[str],
        logs: Path,
        fault: Fault | None,
        variables: Sequence[Mapping[str, str]],
        timeout: float,
    ) -> list[Ended]:
        logs.mkdir(parents=True, exist_ok=True)
        files = [logs / f"process_{index}.log" for index in range(self._count)]
        job: dict[str, Any] = {
            "arguments": list(arguments),
            "logs": list(map(str, files)),
            "environments": list(variables),
            "fault": asdict(fault) if fault else None,
            "timeout": timeout,
        }
        self._server.stdin.write(json.dumps(job) + "\n")  # type: ignore[union-attr]
        self._server.stdin.flush()  # type: ignore[union-attr]
        ends = json.loads(self._server.stdout.readline())  # type: ignore[union-attr]
        return [
            Ended(code, time, file.read_text(errors="replace")) for (code, time), file in zip(ends, files, strict=True)
        ]


def steps_logged(workdir: Path) -> dict[int, float]:
    """Returns the losses in the metrics of stage 1 by step."""
    file = workdir / "stage_1" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def newest_checkpoint(workdir: Path) -> int:
    """Returns the step of the newest complete checkpoint of stage 1; 0 for none."""
    return max(finished_steps(workdir / "stage_1" / "checkpoints"), default=0)


def is_named(fault: Fault, ends: Sequence[Ended]) -> bool:
    """Returns whether the log of a process that did not fail names the process that did."""
    logs = " ".join(end.log for index, end in enumerate(ends) if index != fault.process)
    own = ends[fault.process].log
    names = (f"Process {fault.process} of ", f"rocess {fault.process} (", f"process {fault.process} ")
    # A process whose loader is slow has not failed, and logs itself.
    return any(name in logs for name in names) or (fault.kind.startswith("loader") and any(n in own for n in names[1:]))
