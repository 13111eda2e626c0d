"""Reads files written by `torch.save`, without torch and without running code from the file.

Files are zip archives (or legacy files, from torch before 1.6) with uncompressed tensors, so tensors are views of the
memory-mapped file. The unpickler accepts only a fixed list of harmless names. Any other name is an error.
"""

import contextlib
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from janus_jax.errors import JanusError

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

# Keys under which training scripts store the weights, in the order that LlamaGen's loader tries them.
_NESTINGS = ("ema", "model", "state_dict", "module")
# Bounds the search, because a dict can contain itself.
_MAX_NESTING = 8

_MAX_PICKLE_BYTES = 1 << 28


class _Storage(NamedTuple):
    """The values of a torch storage, a flat view of the file."""

    values: np.ndarray


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Unknown(pickle.UnpicklingError):
    """The pickle refers to a class or function that is not in the list of allowed names."""


class _RebuildTensor:
    # Without attributes, a hostile BUILD instruction has nothing to set.
    __slots__ = ()

    def __call__(
        self,
        storage: _Storage,
        offset: int,
        shape: Sequence[int],
        strides: Sequence[int],
        *_: Any,
    ) -> np.ndarray:
        flat = storage.values
        shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
        if len(shape) != len(strides) or offset < 0 or min((*shape, *strides), default=0) < 0:
            raise pickle.UnpicklingError("a tensor has invalid strides")
        empty = 0 in shape
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if not empty and last >= flat.size:
            raise pickle.UnpicklingError("a tensor reaches past the end of its storage")
        if empty:
            return np.empty(shape, flat.dtype)
        steps = tuple(step * flat.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: np.ndarray, *_: Any) -> np.ndarray:
        return data


class _Device:
    __slots__ = ()

    def __call__(self, *_: Any) -> None:
        return None


def _allowed() -> dict[tuple[str, str], Any]:
    # Created anew for every file, in case a hostile pickle changes it.
    class Namespace:
        """Replaces `argparse.Namespace`, which has only attributes."""

    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("argparse", "Namespace"): Namespace,
        ("torch", "Size"): tuple,
        ("torch", "device"): _Device(),
        ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
        ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
        ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
        ("torch._utils", "_rebuild_parameter_with_state"): _RebuildParameter(),
    }
    names |= {("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()}
    return names


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, storages: Mapping[str, np.ndarray]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storages = storages
        self._names = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[module, name]
        except KeyError:
            raise _Unknown(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        # The legacy format adds a sixth element: None, or a description of the storage as a view of another storage.
        kind, storage_type, key, _, numel, *view = pid
        if view not in ([], [None]):
            raise pickle.UnpicklingError("a storage is a view of another")
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError("it refers to an object that is not a storage")
        if isinstance(self._storages, _PlaceholderStorages):
            self._storages.add(str(key), numel * storage_type.dtype.itemsize)
        raw, dtype = self._storages[str(key)], storage_type.dtype
        if numel * dtype.itemsize > raw.size:
            raise pickle.UnpicklingError(f"storage {key} is shorter than it should be")
        return _Storage(raw[: numel * dtype.itemsize].view(dtype))


def _map_records(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    whole = np.asarray(np.memmap(path, np.uint8, "r"))
    records = {}
    for info in archive.infolist():
        start = info.header_offset
        name_length, extra_length = struct.unpack("<HH", whole[start + 26 : start + 30].tobytes())
        start += 30 + name_length + extra_length
        if start + info.compress_size > whole.size:
            raise JanusError(f"{path} is truncated: record {info.filename} reaches past its end; fetch it again.")
        if info.compress_type == zipfile.ZIP_STORED:
            records[info.filename] = whole[start : start + info.file_size]
    return records


def open_torch_zip(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file written by `torch.save`, as read-only views of the mapped file.

    A state dict may be nested under "ema", "model", "state_dict" or "module". Other content, such as optimizer state or
    arguments, is ignored.

    Raises:
      JanusError: The file is truncated, refers to code, or holds no state dict.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError):
        with path.open("rb") as file:
            head = file.read(4)
        if head[:1] == b"\x80":
            return _open_legacy(path)
        what = "is truncated" if head == b"PK\x03\x04" else "was not written by torch.save"
        raise JanusError(f"{path} {what}; fetch it again.") from None
    with archive:
        records = _map_records(path, archive)
        pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise JanusError(f"{path} is a zip archive but was not written by torch.save: it has no data.pkl.")
        root = pickles[0].rpartition("/")[0]
        prefix = f"{root}/" if root else ""
        if records.get(f"{prefix}byteorder", np.empty(0, np.uint8)).tobytes() == b"big":
            raise JanusError(f"{path} was written on a big-endian machine; re-save it on a little-endian one.")
        data = records[pickles[0]]
        if data.size > _MAX_PICKLE_BYTES:
            raise JanusError(f"{path} has a data.pkl of {data.size} bytes, too many for a state dict; fetch it again.")
        storages = {n.removeprefix(f"{prefix}data/"): r for n, r in records.items() if n.startswith(f"{prefix}data/")}
        with _unpickling(path):
            content = _Unpickler(io.BytesIO(data.tobytes()), storages).load()
    return _state_dict(path, content)


@contextlib.contextmanager
def _unpickling(path: Path) -> Iterator[None]:
    try:
        yield
    except _Unknown as error:
        raise JanusError(
            f"{path} refers to {error}, which a file with weights must not use; if you trust the file, save its state "
            f"dict as safetensors and use that."
        ) from None
    except Exception as error:
        raise JanusError(f"{path} is corrupt ({error}); fetch it again.") from error


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _PlaceholderStorages(dict[str, np.ndarray]):
    """Zero-filled storages, which record the sizes of the storages that a pickle refers to."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes

    def add(self, key: str, size: int) -> None:
        if size > self.max_bytes:
            raise pickle.UnpicklingError(f"storage {key} is larger than the file")
        self[key] = np.zeros(size, np.uint8)


def _open_legacy(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file in the legacy format.

    The file contains pickles of a magic number, a version, the machine's properties, the content and the keys of the
    storages. The storages follow, each preceded by its length.
    """
    whole = np.asarray(np.memmap(path, np.uint8, "r"))
    none: dict[str, np.ndarray] = {}
    with path.open("rb") as file, _unpickling(path):
        if _Unpickler(file, none).load() != _LEGACY_MAGIC:
            raise pickle.UnpicklingError("it does not start with torch's magic number")
        _Unpickler(file, none).load()
        machine = _Unpickler(file, none).load()
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise pickle.UnpicklingError("it was not written on a little-endian machine")
        start, placeholders = file.tell(), _PlaceholderStorages(whole.size)
        # The content is read twice. The first pass finds the sizes of the storages, and thus their offsets.
        _Unpickler(file, placeholders).load()
        keys = _Unpickler(file, none).load()
        offset, storages = file.tell(), {}
        for key in map(str, keys):
            offset += 8
            storages[key] = whole[offset : offset + placeholders[key].size]
            offset += placeholders[key].size
        if offset > whole.size:
            raise pickle.UnpicklingError("it is truncated")
        file.seek(start)
        content = _Unpickler(file, storages).load()
    return _state_dict(path, content)


def _state_dict(path: Path, content: Any) -> dict[str, np.ndarray]:
    for _ in range(_MAX_NESTING):
        if not isinstance(content, dict):
            break
        tensors = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
        if tensors and all(isinstance(name, str) for name in tensors):
            return tensors
        content = next((content[key] for key in _NESTINGS if isinstance(content.get(key), dict)), None)
    raise JanusError(
        f"{path} holds no state dict, at its top level or under {', '.join(_NESTINGS)}; give another file."
    )
