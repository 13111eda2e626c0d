"""Writes safetensors files one tensor at a time, in any order."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import numpy as np

from checkpoints_convert.parameters import Shape
from checkpoints_convert.tensor_files import SAFETENSORS_DTYPES

_KINDS = {dtype: kind for kind, dtype in SAFETENSORS_DTYPES.items()}
_ALIGNMENT = 64


class _Location(NamedTuple):
    file: BinaryIO
    offset: int
    shape: Shape
    dtype: np.dtype


def as_bytes(array: np.ndarray) -> memoryview:
    """Returns the bytes of a contiguous array of any dtype, without a copy."""
    # A bfloat16 array itself does not support the buffer protocol.
    return array.reshape(-1).view(np.uint8).data


def write_all(file: BinaryIO, data: memoryview) -> None:
    """Writes all bytes to an unbuffered file, whose `write` may write only some of them."""
    written = 0
    while written < len(data):
        written += file.write(data[written:]) or 0


class SafetensorsWriter:
    """Writes tensors to one file, or to shards with an index if they are larger than `shard_bytes`.

    Args:
      folder: Folder of the files.
      tensors: Shape and dtype of every tensor, by name.
      shard_bytes: Largest size of a shard. A tensor that is larger has a shard of its own.
      stem: Name of the file without suffix.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, tuple[Shape, np.dtype]],
        shard_bytes: int = 5_000_000_000,
        stem: str = "model",
    ) -> None:
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in tensors.items()}
        shards = _pack(sizes, shard_bytes)
        self._locations: dict[str, _Location] = {}
        self._files: list[BinaryIO] = []
        self._folder, self._stem, self._total = folder, stem, sum(sizes.values())
        self._shard_of: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            single = len(shards) == 1
            filename = f"{stem}.safetensors" if single else f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
            self._open(folder / filename, {name: tensors[name] for name in names})
            self._shard_of |= dict.fromkeys(names, filename)

    def _open(self, path: Path, tensors: Mapping[str, tuple[Shape, np.dtype]]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset, offsets = 0, {}
        for name, (shape, dtype) in tensors.items():
            end = offset + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _KINDS[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offsets[name], offset = offset, end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNMENT)
        file = path.open("wb", buffering=0)
        self._files.append(file)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
        for name, (shape, dtype) in tensors.items():
            self._locations[name] = _Location(file, 8 + len(text) + offsets[name], shape, dtype)

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes one tensor. Every tensor must be written exactly once."""
        location = self._locations.pop(name)
        if array.shape != location.shape:
            raise ValueError(f"{name} has shape {array.shape}; the writer was given {location.shape}")
        location.file.seek(location.offset)
        write_all(location.file, as_bytes(np.ascontiguousarray(array, location.dtype)))

    def close(self) -> None:
        """Closes the files and writes the index of shards.

        Raises:
          ValueError: A tensor was not written.
        """
        if missing := list(self._locations):
            raise ValueError(f"{len(missing)} tensors were not written, among them {missing[0]}")
        for file in self._files:
            file.close()
        if len(self._files) > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": self._shard_of}
            (self._folder / f"{self._stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            for file in self._files:
                file.close()


def _pack(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
