"""Size and CRC-32 of every file of a folder, in `checksums.json` beside them: what was changed since is told."""

import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath  # type: ignore[import-untyped]

_NAME = "checksums.json"
_READERS = 4
_CHUNK = 2**24  # bytes


def write(folder: epath.Path, parts: Sequence[str]) -> None:
    """Writes the checksums of all files below these parts of a folder."""
    files = [file for part in parts for file in _files(folder / part)]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(_checksum, files)
        described = {str(file.relative_to(folder)): sums for file, sums in zip(files, found, strict=True)}
    (folder / _NAME).write_text(json.dumps(described, indent=1))


def verify(folder: epath.Path, index: int = 0, count: int = 1) -> None:
    """Checks one of `count` equal shares of the files.

    Raises:
      ValueError: one is not as it was written.
      OSError: one is not there.
    """
    described = sorted(json.loads((folder / _NAME).read_text()).items())[index::count]
    with ThreadPoolExecutor(_READERS) as pool:
        sums = pool.map(_checksum, [folder / name for name, _ in described])
        for (name, expected), found in zip(described, sums, strict=True):
            if found != expected:
                was, now = (f"{one['bytes']} bytes, CRC-32 {one['crc32']:08x}" for one in (expected, found))
                raise ValueError(f"{name} has {now}; it was written with {was}")


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _checksum(file: epath.Path) -> dict[str, int]:
    size = checksum = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return {"bytes": size, "crc32": checksum}
