"""Four processes of a run, one of which fails."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.fault_injection import BUCKET_KINDS, KINDS, Fault
from benchmarks.fault_runs import Cluster, is_named, newest_checkpoint, steps_logged
from janus_jax.errors import ExitCode
from tests.commands.conftest import ROOT, environment
from tests.training import runs

PROCESSES = 4
# Exit codes of the processes that do not fail.
EXPECTED = dict.fromkeys(KINDS, ExitCode.STALLED) | {
    "loader_crawls": ExitCode.SUCCESS,
    "bucket_error": ExitCode.STORAGE_UNAVAILABLE,
    "disk_error": ExitCode.STORAGE_UNAVAILABLE,
    "disk_full": ExitCode.DISK_FULL,
}


@pytest.fixture(scope="module")
def cluster():
    with Cluster(PROCESSES) as cluster:
        yield cluster


def arguments(workdir, **resources):
    start = "--config.stages.stage_1"
    limits = {"lost_seconds": 10, "watchdog_minutes": 0.5} | resources
    return [
        f"--config={ROOT / 'tests' / 'training' / 'runs.py'}",
        f"--workdir={workdir}",
        *runs.flags(),
        *(f"{start}.initialisation.source=model", f"{start}.initialisation.model={runs.models() / 'model'}"),
        *(f"{start}.batch_size=8", f"{start}.steps=8", "--config.intervals.save=2"),
        *(f"--config.resources.{name}={value}" for name, value in limits.items()),
    ]


def assert_ends(cluster, kind, folder, workdir, bucket=None):
    """Lets a run fail at step 4; checks exit codes and culprit."""
    process = 0 if kind == "coordinator_killed" else 2
    if kind == "kill_in_restore":
        cluster.run([*arguments(workdir), "--config.stages.stage_1.stop_at=4"], folder / "first")
    delay = 4.0 if kind.startswith("loader") else 0.0
    fault = Fault(kind, process, 4, delay, str(folder / "mark"))
    ends = cluster.run(arguments(workdir), folder / "logs", fault=fault, bucket=bucket)
    others = [end for index, end in enumerate(ends) if index != process]
    assert [end.code for end in others] == [EXPECTED[kind]] * 3, [end.log for end in ends]
    if EXPECTED[kind] != ExitCode.SUCCESS:
        assert is_named(fault, ends), [end.log for end in ends]


@pytest.mark.nightly
def test_sleeping_loader_ends_the_run_which_names_its_process(tmp_path, cluster):
    assert_ends(cluster, "loader_sleeps", tmp_path, tmp_path / "run")
    (stacks,) = (tmp_path / "run" / "stage_1" / "stalls").glob("*.process_2.txt")
    assert "fault_injection.py" in stacks.read_text()


@pytest.mark.nightly
def test_runs_with_any_fault_resume_with_the_losses_of_an_undisturbed_run(tmp_path, bucket_server, bucket):
    # Its processes use the bucket's server.
    with Cluster(PROCESSES) as cluster:
        for end in cluster.run(arguments(tmp_path / "undisturbed"), tmp_path / "logs"):
            assert end.code == 0, end.log
        expected = steps_logged(tmp_path / "undisturbed")
        for kind in KINDS:
            folder = tmp_path / kind
            workdir = (bucket if kind in BUCKET_KINDS else folder) / "run"
            assert_ends(cluster, kind, folder, workdir, bucket_server)
            for end in cluster.run(arguments(workdir), folder / "last"):
                assert end.code == 0, end.log
            assert newest_checkpoint(workdir) == 8
            assert steps_logged(workdir) == expected


@pytest.mark.nightly
def test_incident_of_four_processes_is_repeated_in_one(tmp_path, cluster):
    """The small losses of the run are spikes, because the threshold is low."""
    options = [f"--config.incidents.{name}={value}" for name, value in (("z_score", 1e-6), ("window", 4), ("keep", 1))]
    for end in cluster.run([*arguments(tmp_path / "run"), *options], tmp_path / "logs"):
        assert end.code == 0, end.log
    (incident,) = (tmp_path / "run" / "stage_1" / "incidents").iterdir()
    ended = subprocess.run(
        [sys.executable, "-m", "launch.train", f"--replay={incident}"],
        env=environment(XLA_FLAGS=f"--xla_force_host_platform_device_count={PROCESSES}"),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "the batch is that of the incident" in ended.stdout, ended.stderr
    values = [line.partition(": ")[2].split(", recorded ") for line in ended.stdout.splitlines() if "recorded" in line]
    found, recorded = np.transpose([[float(one.removesuffix(", differs")) for one in pair] for pair in values])
    np.testing.assert_allclose(found, recorded, rtol=1e-5)
