"""janus-train: exit codes and messages."""

import json
import signal
import subprocess
import sys
import time

import pytest

from janus_jax.errors import ExitCode
from tests.commands.conftest import ROOT, environment, run
from tests.training import runs

CONFIG = f"--config={ROOT / 'tests' / 'training' / 'runs.py'}"
# Without optimization, compiling takes less time.
ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"}


def command(workdir, *flags):
    return ("launch.train", CONFIG, f"--workdir={workdir}", *runs.flags(), *flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, ExitCode.PREEMPTED), (signal.SIGINT, ExitCode.INTERRUPTED)]
)
def test_signal_saves_and_exits(tmp_path, number, code):
    steps = ("--config.stages.stage_1.steps=100000", "--config.intervals.save=0", "--config.intervals.report=1")
    # Processes in the background of a shell inherit that they ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    begun = subprocess.Popen(
        [sys.executable, "-m", *command(tmp_path, *steps)],
        env=environment(**ONE_DEVICE),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    metrics = tmp_path / "stage_1" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while begun.poll() is None and not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    begun.send_signal(number)
    try:
        assert begun.wait(60) == code
    finally:
        begun.kill()
    assert "a checkpoint is saved" in begun.stderr.read()
    (saved,) = (int(path.name) for path in (tmp_path / "stage_1" / "checkpoints").glob("[0-9]*"))
    assert saved == json.loads(metrics.read_text().splitlines()[-1])["step"]


@pytest.mark.slow
def test_non_finite_gradient_exits_with_diverged(tmp_path):
    start = "--config.stages.stage_1.initialisation"
    flags = (f"{start}.source=model", f"{start}.model={runs.models() / 'spoiled'}")
    done = run(*command(tmp_path, *flags), **ONE_DEVICE)
    assert done.returncode == ExitCode.DIVERGED, done.stderr
    (dump,) = (tmp_path / "stage_1" / "not_finite").iterdir()
    assert str(dump) in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--config.stage=3",), "config.stage is 3; it must be from 1 to 2"),
        (
            ("--config.sources.generation.directory=absent",),
            "absent, the source of component 'generation', is not a folder",
        ),
        (("--config.stages.stage_1.initialisation.source=model",), "initialisation.model is empty"),
        (
            ("--config.samples.questions=(('absent.png', 'What?'),)",),
            "questions, number 1, cannot be used: The image absent.png does not",
        ),
        (("--config.trackers=wandbee",), "config.trackers wandbee is unknown; use tensorboard, wandb, or MODULE:NAME"),
        (("--config.samples.prompts=('A boat.', ' ')",), "config.samples.prompts has an empty prompt"),
    ],
)
def test_user_errors_exit_before_device_use(refuses, tmp_path, flags, words):
    assert words in refuses(*command(tmp_path, *flags), cwd=ROOT)


def test_report_prints_how_the_time_of_a_run_was_spent(tmp_path):
    folder = tmp_path / "stage_1" / "goodput"
    folder.mkdir(parents=True)
    seconds = {"start": 10.0, "step": 90.0}
    start = {"started": 1000.0, "first_step": 0, "ended": 1100.0, "step": 9, "seconds": seconds, "to_first_step": 20.0}
    (folder / "0001.json").write_text(json.dumps(start))
    done = run("launch.train", f"--report={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "goodput: 90.0% of 1 min 40 s in 1 start; start, end 10.0%" in done.stdout
    last = " ".join(done.stdout.splitlines()[-1].split())
    assert last == "1 1970-01-01 00:16:40 0 to 9 20.0 s compiled 1 min 40 s"
