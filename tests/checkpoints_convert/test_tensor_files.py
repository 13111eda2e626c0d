import json

import numpy as np
import pytest

from checkpoints_convert.tensor_files import open_tensors
from janus_jax.errors import JanusError
from tests.checkpoints_convert.checkpoints import BFLOAT16, FLOAT16, FLOAT32, save

TENSORS = {
    "a.weight": np.arange(12, dtype=FLOAT32).reshape(3, 4),
    "b.weight": np.arange(6).astype(BFLOAT16).reshape(2, 3),
    "c": np.arange(5, dtype=FLOAT16),
    "d": np.arange(7, dtype=np.int64),
    "odd": np.ones(3, np.uint8),
    "unaligned": np.arange(4, dtype=FLOAT32),
    "empty": np.zeros((0, 4), FLOAT32),
    "scalar": np.array(2.5, FLOAT32),
}


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "checkpoint", TENSORS)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_every_dtype_and_shape_is_read_as_a_view(folder):
    tensors = open_tensors(folder)
    assert_same(tensors, TENSORS)
    assert not tensors["a.weight"].flags.owndata
    assert not tensors["a.weight"].flags.writeable


def test_the_safetensors_package_reads_written_files(folder):
    from safetensors.numpy import load_file

    assert_same(load_file(folder / "model.safetensors"), TENSORS)


def test_shards_are_read_by_their_index(tmp_path):
    folder = save(tmp_path / "sharded", TENSORS, shard_bytes=40)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_same(open_tensors(folder), TENSORS)


def truncate(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_a_truncated_file_is_named(folder, size):
    file = folder / "model.safetensors"
    truncate(file, size if size >= 0 else file.stat().st_size - 1)
    with pytest.raises(JanusError, match=r"model\.safetensors.*fetch it again"):
        open_tensors(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, "x"]},
        {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, float("inf")]},
        {"dtype": [1], "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2, *[1] * 101], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [0, 1 << 70], "data_offsets": [0, 0]},
        {"shape": [2]},
        [],
        None,
    ],
)
def test_a_corrupt_header_is_named(tmp_path, entry):
    header = json.dumps({"a": entry}).encode() if entry is not None else b"[" * 100_000
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(JanusError, match=r"model\.safetensors"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_a_git_lfs_pointer_is_reported(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(JanusError, match=f"{name} is a git-lfs pointer"):
        open_tensors(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    folder = save(tmp_path / "sharded", TENSORS, shard_bytes=40)
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(JanusError, match=gone.name):
        open_tensors(folder)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../x.safetensors"}}',
        "[" * 100_000,
        '{"weight_map": {"a": "model.safetensors.index.json"}}',
    ],
)
def test_a_damaged_index_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(JanusError, match=r"index\.json"):
        open_tensors(tmp_path)


def test_an_index_of_another_checkpoint_is_refused(tmp_path):
    folder = save(tmp_path / "sharded", TENSORS, shard_bytes=40)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["stranger"] = content["weight_map"]["a.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(JanusError, match="stranger"):
        open_tensors(folder)


def test_a_folder_without_weights_is_refused_with_the_expected_names(tmp_path):
    with pytest.raises(JanusError, match=r"holds no weights.*pytorch_model\.bin"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("folder", ["", "stage_2", "stage_2/checkpoints", "stage_2/checkpoints/40/state"])
def test_a_training_run_is_refused_with_the_command_that_exports_it(tmp_path, folder):
    run = tmp_path / "run"
    (run / "stage_2" / "checkpoints" / "40" / "state").mkdir(parents=True)
    with pytest.raises(JanusError, match=f"export the model with janus-export --workdir {run} --out MODEL"):
        open_tensors(run / folder)


def test_a_run_of_an_image_tokenizer_is_refused_with_its_result(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "config.json").touch()
    with pytest.raises(JanusError, match=f"not of an image tokenizer; give {tmp_path / 'tokenizer'}"):
        open_tensors(tmp_path)


def test_several_files_without_an_index_are_refused(tmp_path):
    for name in ("x", "y"):
        (save(tmp_path / name, TENSORS) / "model.safetensors").rename(tmp_path / f"{name}.safetensors")
    with pytest.raises(JanusError, match=r"x\.safetensors, y\.safetensors"):
        open_tensors(tmp_path)
