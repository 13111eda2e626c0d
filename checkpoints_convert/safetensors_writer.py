"""Writes safetensors shard by shard, each tensor put in its place as it comes."""

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


class _Place(NamedTuple):
    file: BinaryIO
    offset: int
    shape: Shape
    dtype: np.dtype


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, not copied; numpy itself lends no buffer of a bfloat16 array."""
    return array.reshape(-1).view(np.uint8).data


class SafetensorsWriter:
    """Makes `model.safetensors`, or shards with an index where that would be larger than one shard.

    Args:
      folder: where.
      tensors: name -> (shape, dtype) of all that will be written.
      shard_bytes: a shard's largest size; one tensor that is larger has a shard of its own.
      stem: the file's name without its suffix.
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
        self._places: dict[str, _Place] = {}
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
            self._places[name] = _Place(file, 8 + len(text) + offsets[name], shape, dtype)

    def write(self, name: str, array: np.ndarray) -> None:
        """Puts one tensor in its place; each has to come once."""
        place = self._places.pop(name)
        if array.shape != place.shape:
            raise ValueError(f"{name} is {array.shape}, announced was {place.shape}")
        data = as_bytes(np.ascontiguousarray(array, place.dtype))
        place.file.seek(place.offset)
        written = 0
        while written < len(data):
            written += place.file.write(data[written:]) or 0

    def close(self) -> None:
        """Writes the index where there are shards.

        Raises:
          ValueError: a tensor that was announced never came.
        """
        if self._places:
            raise ValueError(f"{len(self._places)} tensors were not written, among them {next(iter(self._places))}")
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
