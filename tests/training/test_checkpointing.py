import contextlib
import datetime
import errno
import logging
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from janus_jax.errors import JanusError, StorageFull, StorageUnavailable
from janus_jax.sharding import make_mesh
from janus_jax.training import checkpoint_files
from janus_jax.training import checkpointing as module
from janus_jax.training.checkpoint_files import SavedCheckpoint
from janus_jax.training.checkpointing import CheckpointInfo, Checkpoints, RetentionPolicy
from janus_jax.training.state import abstract_state
from tests.training import toy

RUN = {"seed": 3, "optimizer": {"learning_rate": 1e-3}}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 2, 2)


@pytest.fixture(scope="module")
def abstract(mesh):
    return abstract_state(toy.make, mesh, 0)


@pytest.fixture(scope="module")
def state(abstract):
    return toy.init_sharded(toy.make, abstract, 0)


def save(folder, state, steps, keep=None, metrics=()):
    """Saves a checkpoint of each step, and returns the steps in the folder."""
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            named = {"loss": metrics[step]} if metrics else None
            checkpoints.save(step, state.replace(step=state.step + step), {"read": 10 * step}, RUN, named)
        checkpoints.wait()
        return checkpoints.steps


def restore(folder, abstract):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(abstract)


@pytest.mark.parametrize("sizes", [None, (8, 1, 1), (1, 4, 2)], ids=["one device", "data", "fsdp and tensor"])
def test_checkpoint_restores_on_any_mesh(tmp_path, state, sizes):
    save(tmp_path, state, [7])
    abstract_here = abstract_state(toy.make, None if sizes is None else make_mesh(*sizes), 0)
    restored = restore(tmp_path, abstract_here)
    assert (restored.step, restored.data_state, restored.config) == (7, {"read": 70}, RUN)
    jax.tree.map(np.testing.assert_array_equal, restored.state, state.replace(step=np.int32(7)))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a.sharding == b.sharding, restored.state, abstract_here)))


def test_empty_folder_restores_nothing(tmp_path, abstract):
    assert restore(tmp_path / "new", abstract) is None


def test_state_can_be_donated_during_a_save(tmp_path, abstract):
    state = toy.init_sharded(toy.make, abstract, 0)
    expected = jax.device_get(state.params)
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0, state), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, RUN)
        for _ in range(20):
            state = overwrite(state)
    jax.tree.map(np.testing.assert_array_equal, restore(tmp_path, abstract).state.params, expected)


def test_saved_step_is_not_overwritten(tmp_path, state, abstract):
    save(tmp_path, state, [1])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"read": "other"}, RUN)
    assert restore(tmp_path, abstract).data_state == {"read": 10}


SAVED = [
    CheckpointInfo(step, datetime.datetime.fromtimestamp(60 * step, datetime.UTC), loss)
    for step, loss in enumerate([0.9, 0.1, 0.5, None, 0.7, 0.8])
]


@pytest.mark.parametrize(
    ("keep", "steps"),
    [
        (RetentionPolicy(last=2), {4, 5}),
        (RetentionPolicy(last=10), {0, 1, 2, 3, 4, 5}),
        (RetentionPolicy(last=2, every_steps=3), {0, 3, 4, 5}),
        (RetentionPolicy(last=2, every_seconds=120), {0, 2, 4, 5}),
        (RetentionPolicy(last=2, best=2), {1, 2, 4, 5}),
        (RetentionPolicy(last=2, best=1, best_is="max"), {0, 4, 5}),
    ],
)
def test_retention_policy_keeps_the_expected_steps(keep, steps):
    assert {info.step for info, is_kept in zip(SAVED, keep.is_kept(SAVED), strict=True) if is_kept} == steps


def test_retention_continues_after_a_restart(tmp_path, state):
    losses = [0, 0.5, 0.1, 0.4, 0.3, 0.2]
    keep = RetentionPolicy(last=2, best=1)
    assert save(tmp_path, state, [1, 2, 3], keep, losses) == [2, 3]
    assert save(tmp_path, state, [4, 5], keep, losses) == [2, 4, 5]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"last": 1}, "keep.last is 1; .* 2 or more"), ({"best_is": "low"}, "best_is is .low.; it must be min or max")],
)
def test_invalid_retention_is_rejected(wrong, words):
    with pytest.raises(JanusError, match=words):
        RetentionPolicy(**wrong)


def test_params_are_read_for_another_stage(tmp_path, state, mesh):
    save(tmp_path, state, [1, 2])
    flip(tmp_path / "2")
    # In this stage the head is frozen and the table is trained.
    abstract = abstract_state(toy.make, make_mesh(1, 4, 2), 0)
    wanted = {
        "layers": {"out": abstract.params["layers"]["out"]},
        "embed": jax.tree.map(in_float32, abstract.frozen["embed"]),
    }
    read = SavedCheckpoint.newest(tmp_path).params(wanted)
    assert (tmp_path / "2").is_dir()
    jax.tree.map(np.testing.assert_array_equal, read["layers"]["out"], state.params["layers"]["out"])
    jax.tree.map(np.testing.assert_array_equal, read["embed"], state.frozen["embed"])
    same = jax.tree.map(lambda a, b: (a.dtype, a.sharding) == (b.dtype, b.sharding), read, wanted)
    assert all(jax.tree.leaves(same))


def in_float32(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=leaf.sharding)


def test_missing_params_are_reported(tmp_path, state, abstract):
    with pytest.raises(JanusError, match="has no checkpoint"):
        SavedCheckpoint.newest(tmp_path / "empty")
    save(tmp_path, state, [1])
    with pytest.raises(JanusError, match="no parameter layers/fc/scale"):
        SavedCheckpoint.newest(tmp_path).params({"layers": {"fc": {"scale": abstract.params["layers"]["fc"]["bias"]}}})
    with pytest.raises(JanusError, match=r"layers/fc/bias is float32\[3,16\]; it must be \[3,16,8\]"):
        SavedCheckpoint.newest(tmp_path).params({"layers": {"fc": {"bias": abstract.params["layers"]["fc"]["weight"]}}})


# Damage.


def largest(folder):
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def truncate(folder):
    os.truncate(largest(folder / "state"), largest(folder / "state").stat().st_size // 2)


def flip(folder):
    file = largest(folder / "state")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_file(folder):
    largest(folder / "state").unlink()


def lose_all_files(folder):
    for file in list(folder.rglob("*")):
        if file.is_file():
            file.unlink()


def forge_the_run(folder):
    file = largest(folder / "run")
    file.write_text(file.read_text().replace("3", "4"))


def lose_the_checksums(folder):
    (folder / "checksums.json").unlink()


def garble_the_checksums(folder):
    (folder / "checksums.json").write_text('{"state/_METADATA": {"byt')


DAMAGES = [truncate, flip, lose_a_file, lose_all_files, forge_the_run, lose_the_checksums, garble_the_checksums]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_checkpoint_is_reported_and_skipped(tmp_path, state, abstract, caplog, damage):
    save(tmp_path, state, [1, 2, 3])
    damage(tmp_path / "3")
    with caplog.at_level(logging.WARNING, module.__name__), Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(abstract)
        assert (restored.step, int(restored.state.step), restored.data_state) == (2, 2, {"read": 20})
        (message,) = [record.getMessage() for record in caplog.records if record.name == module.__name__]
        assert str(tmp_path / "3") in message
        assert "damaged" in message
        assert (tmp_path / "damaged" / "3").is_dir()
        # The resumed run saves this step again.
        checkpoints.save(3, restored.state, {"read": 30}, RUN)
    assert restore(tmp_path, abstract).data_state == {"read": 30}


def test_only_damaged_checkpoints_raise_and_stay(tmp_path, state, abstract):
    save(tmp_path, state, [1, 2])
    for step in (1, 2):
        flip(tmp_path / str(step))
    with pytest.raises(JanusError, match=r"only damaged checkpoints: 1, 2") as raised:
        restore(tmp_path, abstract)
    assert str(tmp_path) in str(raised.value)
    assert not (tmp_path / "damaged").exists()


def test_a_checkpoint_without_read_permission_is_not_called_damaged(tmp_path, state, abstract, monkeypatch):
    save(tmp_path, state, [1, 2])

    def deny(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "2/run")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "_verify_checksums", deny)
        with pytest.raises(JanusError, match=r"cannot be read .*Permission denied.*repeat the command"):
            restore(tmp_path, abstract)
    assert restore(tmp_path, abstract).step == 2
    assert not (tmp_path / "damaged").exists()


def test_checkpoint_of_another_model_is_rejected(tmp_path, state, mesh):
    save(tmp_path, state, [1])
    other = abstract_state(lambda: toy.make(0, ema=True), mesh)
    with pytest.raises(JanusError, match=r"ema/layers/fc/bias is missing in the checkpoint and float32\[3,16\] in"):
        restore(tmp_path, other)
    assert (tmp_path / "1").is_dir()


def test_file_instead_of_folder_is_rejected(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(JanusError, match="file"):
        Checkpoints(tmp_path / "file" / "checkpoints")


# Full disks.


@pytest.mark.parametrize(
    "fault",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ValueError("RESOURCE_EXHAUSTED: ... No space left on device")],
    ids=["operating system", "tensorstore"],
)
def test_full_disk_keeps_older_checkpoints(tmp_path, state, abstract, monkeypatch, caplog, fault):
    save(tmp_path, state, [1, 2], RetentionPolicy(last=2))

    def fail(*arguments):
        raise fault

    monkeypatch.setattr(module, "write_checksums", fail)
    with Checkpoints(tmp_path, RetentionPolicy(last=2)) as checkpoints:
        checkpoints.save(3, state, {}, RUN)
        with pytest.raises(StorageFull, match=r"newest is that of step 2\); free some space") as raised:
            checkpoints.wait()
        assert str(tmp_path) in str(raised.value)
        assert checkpoints.steps == [1, 2]
    # No traceback of a background thread is logged.
    assert not [record for record in caplog.records if record.exc_info]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    assert restore(tmp_path, abstract).step == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            OSError(errno.EIO, os.strerror(errno.EIO), "state/d/0"),
            r"3 cannot be written \(state/d/0: Input/output error",
        ),
        (ValueError('Error writing "/mnt/a/d": [OS error 5: EIO Input/output error]'), "/mnt/a/d: Input/output error"),
    ],
    ids=["operating system", "tensorstore"],
)
@pytest.mark.parametrize("name", ["write_checksums", "_Manager.save"])
def test_failing_disk_names_the_file_and_keeps_older_checkpoints(
    tmp_path, state, abstract, monkeypatch, capfd, fault, words, name
):
    save(tmp_path, state, [1, 2])

    def fail(*arguments, **named):
        raise fault

    monkeypatch.setattr(f"{module.__name__}.{name}", fail)
    checkpoints = Checkpoints(tmp_path)

    def save_again():
        checkpoints.save(3, state, {}, RUN)
        checkpoints.wait()

    with pytest.raises(StorageUnavailable, match=words):
        save_again()
    with contextlib.suppress(StorageUnavailable):
        checkpoints.close()
    assert "Traceback" not in capfd.readouterr().err
    assert restore(tmp_path, abstract).step == 2


def test_full_tmpfs_raises_storage_full_without_traces(mount_disk, state, abstract, capfd):
    small_disk = mount_disk("512k")
    checkpoints = Checkpoints(small_disk, RetentionPolicy(last=100))

    def fill():
        for step in range(100):
            checkpoints.save(step, state, {}, RUN)

    with pytest.raises(StorageFull, match="has no space for a checkpoint"):
        fill()
    newest = checkpoints.steps[-1]
    # The save before may have failed too, in the background.
    with contextlib.suppress(StorageFull):
        checkpoints.close()
    assert 0 < newest < 99
    assert restore(small_disk, abstract).step == newest
    assert "Traceback" not in capfd.readouterr().err


# Processes that are killed.

SAVING = """
import sys
import jax
from janus_jax.training.checkpoint_files import SavedCheckpoint
from janus_jax.training.checkpointing import Checkpoints, RetentionPolicy
from janus_jax.training.state import abstract_state
from tests.training import toy

abstract = abstract_state(toy.make, None, 0)
with Checkpoints(sys.argv[1], RetentionPolicy(last=2)) as checkpoints:
    restored = checkpoints.restore(abstract)
    state = restored.state if restored else toy.init_sharded(toy.make, abstract, 0)
    for step in range(restored.step + 1 if restored else 0, 10**6):
        state = state.replace(step=state.step * 0 + step)
        checkpoints.save(step, state, {"read": step}, {})
        print(step, flush=True)
"""


def start(code, *arguments, **variables):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_kill_during_save_leaves_complete_checkpoints(tmp_path):
    here = abstract_state(toy.make, None, 0)
    for saves, seconds in ((2, 0.03), (3, 0.1)):
        with start(SAVING, tmp_path) as process:
            # During a save the checkpoint before it is complete.
            seen = [int(process.stdout.readline()) for _ in range(saves)]
            time.sleep(seconds)
            process.kill()
        with Checkpoints(tmp_path) as checkpoints:
            restored = checkpoints.restore(here)
            assert restored.step == int(restored.state.step) == restored.data_state["read"] == checkpoints.steps[-1]
        assert restored.step >= seen[-2]
        assert not (tmp_path / "damaged").exists()
        assert not list(tmp_path.glob("*tmp*"))
