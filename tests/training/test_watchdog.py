"""A process that is stuck ends; tests/training/test_faults.py runs several processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from janus_jax.errors import ExitCode, JanusError
from janus_jax.training.watchdog import Limits
from tests.commands.conftest import environment

STUCK = """
import sys, time
from pathlib import Path
from janus_jax.training.phases import Phases
from janus_jax.training.watchdog import Limits, Watchdog

def next_batch_of_a_broken_loader():
    time.sleep(600)

phases = Phases()
with Watchdog(phases, Limits(watchdog_minutes=0.01), Path(sys.argv[1])), phases("step"):
    phases.begin_step(7)
    with phases("data"):
        next_batch_of_a_broken_loader()
"""


def test_stuck_process_ends_with_its_stacks_and_a_retryable_code(tmp_path):
    command = [sys.executable, "-c", STUCK, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), check=False)
    assert ended.returncode == ExitCode.STALLED
    assert ended.stderr.splitlines()[-1] == (
        "janus-train: The run is stuck at step 7: no step was completed for 1 s; this process is waiting for its data. "
        "Repeat the command."
    )
    (file,) = (tmp_path / "stalls").iterdir()
    assert file.name.endswith(".process_0.txt")
    assert "next_batch_of_a_broken_loader" in file.read_text()


CONTINUED = """
import sys, time
from pathlib import Path
from janus_jax.training.phases import Phases
from janus_jax.training.watchdog import Limits, Watchdog

phases = Phases()
with Watchdog(phases, Limits(watchdog_minutes=0.05), Path(sys.argv[1])), phases("step"):
    phases.begin_step(7)
    print("started", flush=True)
    time.sleep(2)
    print("ended", flush=True)
"""


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGSTOP])
def test_time_in_which_the_job_was_stopped_does_not_count(tmp_path, number):
    command = [sys.executable, "-c", CONTINUED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        time.sleep(12)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "ended\n"
    assert process.returncode == 0


def test_each_phase_has_its_limit():
    limits = Limits(watchdog_minutes=1, compile_minutes=2, restore_minutes=3, save_minutes=4, evaluate_minutes=0)
    seconds = {"data": 60, "step": 60, "compile": 120, "start": 180, "save": 240, "evaluate": float("inf")}
    assert {phase: limits.seconds(phase) for phase in seconds} == seconds


def test_limits_are_checked():
    with pytest.raises(JanusError, match=r"config\.resources\.lost_seconds is 1000"):
        Limits(lost_seconds=1000)
