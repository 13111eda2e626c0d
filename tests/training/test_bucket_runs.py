"""Runs of janus-train with a workdir on a bucket."""

import json

import jax
import numpy as np
import pytest

from janus_jax.buckets import remove_folder
from janus_jax.errors import ExitCode
from janus_jax.training.checkpoint_files import finished_steps
from tests.training import runs
from tests.training.test_kills import COMMAND, TIMEOUT, Run, wait, while_saving, while_stepping
from tests.training.test_processes import CONFIG, run_processes

STEPS = 14
WITHOUT_DELAYS = """
import gcsfs.retry
from janus_jax import buckets
buckets.RETRY_SECONDS = 0.0
gcsfs.retry.min = lambda *_: 0
"""


class BucketRun(Run):
    """Runs on a bucket, which do not wait long for it."""

    command = WITHOUT_DELAYS + COMMAND

    @property
    def saved(self):
        return max(finished_steps(self.checkpoints), default=0)

    @property
    def unfinished(self):
        finished = finished_steps(self.checkpoints)
        names = [path.name for path in self.checkpoints.glob("*")]
        return [name for name in names if name.isdecimal() and int(name) not in finished]


@pytest.mark.nightly
def test_run_killed_during_saves_and_without_a_bucket_resumes_bit_for_bit(tmp_path, bucket, bucket_server):
    steps, rng = f"--config.stages.stage_1.steps={STEPS}", np.random.default_rng(0)
    undisturbed = Run(tmp_path, "undisturbed", steps)
    undisturbed.finish()

    run = BucketRun(tmp_path, "disturbed", steps, workdir=bucket / "disturbed")
    interrupted = [run.kill(moment, rng) for moment in (while_saving, while_stepping, while_saving)]
    assert any(interrupted)
    with run.start() as process:
        try:
            before = run.saved
            wait(process, lambda: run.saved > before)
            bucket_server.fail(503)
            assert process.wait(TIMEOUT) == ExitCode.STORAGE_UNAVAILABLE, run.log.read_text()
        finally:
            process.kill()
            bucket_server.reset()
    assert "the bucket gs://bucket does not answer" in run.log.read_text().splitlines()[-1]
    run.finish()

    assert run.curve == undisturbed.curve
    arrays, data = run.last(STEPS)
    expected = undisturbed.last(STEPS)
    jax.tree.map(np.testing.assert_array_equal, arrays, expected[0])
    assert data == expected[1]
    assert not run.unfinished
    assert not (run.checkpoints / "damaged").exists()


@pytest.mark.nightly
def test_two_processes_resume_on_a_bucket(bucket):
    start = "--config.stages.stage_1.initialisation"
    command = (
        *("-m", "launch.train", CONFIG, f"--workdir={bucket}", "--distributed", *runs.flags()),
        *(f"{start}.source=model", f"{start}.model={runs.models() / 'model'}"),
    )
    run_processes(2, *command)
    checkpoints = bucket / "stage_1" / "checkpoints"
    assert finished_steps(checkpoints) == [2, 4]
    last = (checkpoints / "4" / "run" / "metadata").read_text()

    remove_folder(checkpoints / "4")
    run_processes(2, *command)
    assert finished_steps(checkpoints) == [2, 4]
    again = (checkpoints / "4" / "run" / "metadata").read_text()
    assert _without_time(again) == _without_time(last)


def _without_time(text):
    content = json.loads(text)
    del content["time"]
    return content
