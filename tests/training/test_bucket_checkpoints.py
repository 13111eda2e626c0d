"""Checkpoints on a bucket."""

import jax
import numpy as np
import pytest

from janus_jax import buckets
from janus_jax.errors import StorageUnavailable
from janus_jax.sharding import make_mesh
from janus_jax.training.checkpoint_files import SavedCheckpoint
from janus_jax.training.checkpointing import Checkpoints, RetentionPolicy
from janus_jax.training.state import abstract_state
from tests.training import toy


@pytest.fixture(scope="module")
def abstract():
    return abstract_state(toy.make, make_mesh(1, 4, 2), 0)


@pytest.fixture(scope="module")
def state(abstract):
    return toy.init_sharded(toy.make, abstract, 0)


def save(directory, state, *steps):
    with Checkpoints(directory, RetentionPolicy(last=2)) as checkpoints:
        for step in steps:
            checkpoints.save(step, state, {"order": step}, {"a": 1})
            checkpoints.wait()
        return checkpoints.steps


def restore(directory, abstract):
    with Checkpoints(directory) as checkpoints:
        restored = checkpoints.restore(abstract)
        return checkpoints.steps, restored


def test_state_is_saved_and_restored_without_reading_it_for_checksums(bucket, bucket_server, state, abstract):
    assert save(bucket, state, 1, 2, 3) == [2, 3]
    steps, restored = restore(bucket, abstract)
    # TensorStore names itself in its requests.
    assert all("tensorstore=" in path for path in bucket_server.downloads("process_0%2Fd"))
    assert (steps, restored.step, restored.data_state) == ([2, 3], 3, {"order": 3})
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)
    assert SavedCheckpoint.newest(bucket).step == 3


def test_unfinished_save_is_removed(bucket, state, abstract):
    save(bucket, state, 1, 2)
    (bucket / "2" / "commit_success.txt").unlink()
    assert SavedCheckpoint.newest(bucket).step == 1
    steps, restored = restore(bucket, abstract)
    assert (steps, restored.step) == ([1], 1)
    assert not (bucket / "2").exists()


def test_changed_object_is_found_and_the_checkpoint_before_it_restored(bucket, state, abstract, caplog):
    save(bucket, state, 1, 2)
    name = next(name for name in buckets.object_checksums(bucket / "2") if "process_0/d" in name)
    content = (bucket / "2" / name).read_bytes()
    buckets.write_object(bucket / "2" / name, content[:-1] + bytes([content[-1] ^ 1]))
    steps, restored = restore(bucket, abstract)
    assert (steps, restored.step) == ([1], 1)
    assert f"2 is damaged ({name} has" in caplog.text
    assert (bucket / "damaged" / "2" / name).exists()


def test_bucket_that_does_not_answer_is_not_damage(bucket, bucket_server, state, abstract, monkeypatch):
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 0.0)
    save(bucket, state, 1, 2)
    with Checkpoints(bucket) as checkpoints:
        bucket_server.fail(503)
        with pytest.raises(StorageUnavailable, match="does not answer"):
            checkpoints.restore(abstract)
        bucket_server.reset()
        assert checkpoints.restore(abstract).step == 2
    assert not (bucket / "damaged").exists()


def test_checkpoint_copied_to_a_disk_is_restored(bucket, state, abstract):
    save(bucket, state, 1)
    folder = buckets.local_copy(bucket)
    _, restored = restore(folder, abstract)
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)
