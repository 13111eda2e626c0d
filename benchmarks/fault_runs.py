"""Runs a training command in several processes on this machine, with a fault in one of them, and reads its results."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.fault_injection import Fault

TIMEOUT = 600.0  # seconds until a run counts as hanging


@dataclass
class Ended:
    """A process that has ended: exit code, seconds since the epoch, and output."""

    code: int
    time: float
    log: str


def run_cluster(
    arguments: Sequence[str], count: int, logs: Path, *, fault: Fault | None = None, timeout: float = TIMEOUT
) -> list[Ended]:
    """Runs `janus-train --distributed` in several processes with one device each until all have ended.

    A process that is stopped is killed when all others have ended.

    Args:
      arguments: Arguments of the command.
      count: Number of processes.
      logs: Folder for the output.
      fault: Fault of one of the processes.
      timeout: Seconds after which all processes are killed.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    variables = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1",
        "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
    }
    if fault is not None:
        variables["JANUS_FAULT"] = json.dumps(asdict(fault))
    command = [sys.executable, "-m", "benchmarks.fault_injection", "--distributed", *arguments]
    files = [logs / f"process_{index}.log" for index in range(count)]
    processes = []
    for index, file in enumerate(files):
        with file.open("w") as log:
            environment = os.environ | variables | {"JAX_PROCESS_ID": str(index)}
            processes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=_restore_signals)
            )
    ends: dict[int, float] = {}
    deadline = time.time() + timeout
    try:
        while len(ends) < count and time.time() < deadline:
            for index, process in enumerate(processes):
                if index not in ends and process.poll() is not None:
                    ends[index] = time.time()
            if fault is not None and fault.kind == "stop" and len(ends) == count - 1:
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        Ended(process.returncode, ends.get(index, time.time()), file.read_text(errors="replace"))
        for index, (process, file) in enumerate(zip(processes, files, strict=True))
    ]


def _restore_signals() -> None:
    # A background shell ignores SIGINT, and its children inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def steps_logged(workdir: Path) -> dict[int, float]:
    """Returns the losses in the metrics of stage 1 by step."""
    file = workdir / "stage_1" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def newest_checkpoint(workdir: Path) -> int:
    """Returns the step of the newest complete checkpoint of stage 1; 0 for none."""
    folder = workdir / "stage_1" / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def is_named(fault: Fault, ends: Sequence[Ended], count: int) -> bool:
    """Returns whether the log of a process that did not fail names the process that did."""
    logs = " ".join(end.log for index, end in enumerate(ends) if index != fault.process)
    own = ends[fault.process].log
    names = (f"Process {fault.process} of ", f"rocess {fault.process} (", f"process {fault.process} ")
    return any(name in logs for name in names) or (fault.kind.startswith("loader") and names[1] in own)
