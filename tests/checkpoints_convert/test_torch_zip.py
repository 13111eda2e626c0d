"""Tests of reading files without torch. The files in data/ were written by `torch.save`."""

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert.tensor_files import open_tensors
from janus_jax.errors import JanusError
from tests.checkpoints_convert.checkpoints import BFLOAT16

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", ["torch_saved.bin", "torch_saved_before_zip.pth"])
def test_saved_tensors_are_read_as_views(name):
    tensors = open_tensors(DATA / name)
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(tensors["plain"], base)
    np.testing.assert_array_equal(tensors["transposed"], base.T)
    np.testing.assert_array_equal(tensors["offset"], base[1:3, ::2])
    np.testing.assert_array_equal(tensors["bfloat16"], np.arange(5).astype(BFLOAT16))
    np.testing.assert_array_equal(tensors["int64"], np.arange(5))
    np.testing.assert_array_equal(tensors["parameter"], np.ones(3, np.float32))
    assert tensors["bfloat16"].dtype == BFLOAT16
    assert tensors["int64"].dtype == np.int64
    assert not tensors["plain"].flags.owndata
    assert not tensors["plain"].flags.writeable
    if name == "torch_saved.bin":
        np.testing.assert_array_equal(tensors["float16"], np.arange(5, dtype=np.float16))
        assert tensors["scalar"].shape == ()
        assert tensors["empty"].shape == (0, 3)


def test_a_state_dict_next_to_optimizer_state_is_found():
    tensors = open_tensors(DATA / "nested.pt")
    assert list(tensors) == ["quantize.embedding.weight"]


def test_torch_is_not_needed():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from checkpoints_convert.tensor_files import open_tensors\n"
        f"assert open_tensors(__import__('pathlib').Path({str(DATA / 'torch_saved.bin')!r}))['plain'].sum() == 276"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DATA.parents[2])


def archive(path, content):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/data/0", bytes(16))
    return path


class Hostile:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Hostile(eval, "1/0"), r"builtins\.eval"),
        (Hostile(__import__("os").system, "exit 1"), r"posix\.system"),
        ({"model": {"a": Hostile(getattr, "", "upper")}}, r"builtins\.getattr"),
        (b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.", r"torch\.storage\._load_from_bytes"),
    ],
)
def test_a_pickle_with_code_is_refused_by_name(tmp_path, content, name):
    content = content if isinstance(content, bytes) else pickle.dumps(content)
    with pytest.raises(JanusError, match=name):
        open_tensors(archive(tmp_path / "pytorch_model.bin", content))


def storage(numel):
    return f"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{numel}\ntQ".encode()


def rebuilt(numel, offset, shape, stride):
    arguments = storage(numel) + f"I{offset}\n(I{shape}\nt(I{stride}\ntI00\nN".encode()
    return b"(dS'a'\nctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRs."


def test_a_handwritten_pickle_is_read(tmp_path):
    tensors = open_tensors(archive(tmp_path / "pytorch_model.bin", rebuilt(4, 1, 3, 1)))
    np.testing.assert_array_equal(tensors["a"], np.zeros(3, np.float32))


@pytest.mark.parametrize(
    "layout", [(4, 0, 5, 1), (4, 0, 2, 4), (4, -1, 2, 1), (4, 0, 2, -1), (5, 0, 1, 1), (4, 0, -2, 1)]
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, layout):
    with pytest.raises(JanusError, match="corrupt"):
        open_tensors(archive(tmp_path / "pytorch_model.bin", rebuilt(*layout)))


def test_a_hostile_build_does_not_affect_the_next_file(tmp_path):
    build = b"ctorch._utils\n_rebuild_tensor_v2\n(N(dS'__call__'\nS'x'\nstb."
    with pytest.raises(JanusError, match="corrupt"):
        open_tensors(archive(tmp_path / "pytorch_model.bin", build))
    open_tensors(archive(tmp_path / "again.bin", rebuilt(4, 0, 4, 1)))


@pytest.mark.parametrize("length", [3, 40, 300, -1])
def test_a_truncated_file_of_the_legacy_format_is_refused(tmp_path, length):
    content = (DATA / "torch_saved_before_zip.pth").read_bytes()
    file = tmp_path / "cut.pth"
    file.write_bytes(content[:length])
    with pytest.raises(JanusError, match=r"cut\.pth"):
        open_tensors(file)


def test_code_in_the_legacy_format_is_refused_by_name(tmp_path):
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    file = tmp_path / "hostile.pth"
    file.write_bytes(b"".join(map(pickle.dumps, [*head, Hostile(eval, "1/0")])))
    with pytest.raises(JanusError, match=r"builtins\.eval"):
        open_tensors(file)


def test_a_truncated_archive_is_named(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes((DATA / "torch_saved.bin").read_bytes()[:-100])
    with pytest.raises(JanusError, match=r"pytorch_model\.bin is truncated"):
        open_tensors(tmp_path)


CYCLE: dict[str, object] = {}
CYCLE["model"] = CYCLE


@pytest.mark.parametrize("content", [{}, [1], {"epoch": 3}, CYCLE], ids=["empty", "list", "numbers", "cycle"])
def test_a_file_without_weights_is_refused(tmp_path, content):
    with pytest.raises(JanusError, match="holds no state dict"):
        open_tensors(archive(tmp_path / "pytorch_model.bin", pickle.dumps(content)))


def test_a_damaged_directory_of_the_archive_is_reported(tmp_path):
    file = archive(tmp_path / "pytorch_model.bin", pickle.dumps({}))
    content = bytearray(file.read_bytes())
    # The offset of the first record in its entry of the central directory.
    offset = content.index(b"PK\x01\x02") + 42
    content[offset : offset + 4] = (len(content) - 8).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(JanusError, match=r"pytorch_model\.bin is damaged"):
        open_tensors(file)
