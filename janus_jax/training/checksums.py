"""Size and CRC-32 of every file in a folder, stored in its `checksums.json`."""

import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath  # type: ignore[import-untyped]

_NAME = "checksums.json"
_THREADS = 4
_CHUNK = 2**24  # bytes


def write(folder: epath.Path, parts: Sequence[str]) -> None:
    """Writes the checksums of all files in these subfolders."""
    files = [file for part in parts for file in _files(folder / part)]
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = {
            str(file.relative_to(folder)): entry for file, entry in zip(files, pool.map(_entry, files), strict=True)
        }
    (folder / _NAME).write_text(json.dumps(entries, indent=1))


def verify(folder: epath.Path, index: int, count: int) -> None:
    """Verifies every `count`-th file, starting with number `index`, so that processes share the work.

    Raises:
      ValueError: A file has changed.
      OSError: A file is missing.
    """
    entries = sorted(json.loads((folder / _NAME).read_text()).items())[index::count]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(_entry, [folder / name for name, _ in entries])
        for (name, expected), actual in zip(entries, found, strict=True):
            if actual != expected:
                now, then = (f"{one['bytes']} bytes, CRC-32 {one['crc32']:08x}" for one in (actual, expected))
                raise ValueError(f"{name} has {now}; it was written with {then}")


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _entry(file: epath.Path) -> dict[str, int]:
    size = checksum = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return {"bytes": size, "crc32": checksum}
