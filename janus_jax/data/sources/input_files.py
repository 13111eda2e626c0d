"""Finds the input files of a source: files, patterns, and folders such as a downloaded dataset."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from janus_jax.errors import JanusError
from janus_jax.files import check_lfs_pointer, reading

_SKIPPED_FOLDERS = ("__MACOSX",)
# Metadata of Hugging Face datasets and of prepared datasets.
_METADATA = re.compile(r"(dataset_infos?|dataset_dict|state|features|preparation)\.json|cache-.*\.arrow")
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_SPLIT = re.compile(rf"({'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)


class InputFile(NamedTuple):
    """An input file.

    Attributes:
      path: Path of the file.
      label: Path relative to the folder that contains all input files. Keys of records start with it.
    """

    path: Path
    label: str

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size


def is_skipped(name: str) -> bool:
    """Returns whether a path is hidden (a part starts with a dot) or was added by macOS to a folder or archive."""
    parts = name.split("/")
    return any(part in _SKIPPED_FOLDERS or (part.startswith(".") and part not in (".", "..")) for part in parts)


def find_files(inputs: Sequence[str], endings: tuple[str, ...], split: str) -> list[InputFile]:
    """Returns the input files, sorted.

    Args:
      inputs: Paths or patterns. Of a folder, the files with one of the endings are read, also those in subfolders.
      endings: Endings of files in folders, in lower case.
      split: Split to read if the names in a folder name several splits.

    Raises:
      JanusError: No file matches, a file is a git-lfs pointer, or the split is missing.
    """
    paths = sorted({path for pattern in inputs for path in _matches(pattern, endings, split)})
    common = os.path.commonpath([path.parent for path in paths])
    for path in paths:
        with reading(path), path.open("rb") as stream:
            check_lfs_pointer(path, stream.read(64))
    return [InputFile(path, path.relative_to(common).as_posix()) for path in paths]


def files_in(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder and its subfolders. Skips hidden files, and those that macOS adds."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # A link to a folder that contains it.
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_skipped(name))
        yield from (Path(parent, name) for name in sorted(names) if not is_skipped(name))


def _matches(pattern: str, endings: tuple[str, ...], split: str) -> list[Path]:
    with reading(pattern, "give another path"):
        path = Path(pattern).absolute()
        if path.is_dir():
            return _select_split(pattern, path, _files_with(pattern, path, endings), split)
        found = [path] if path.exists() else [Path(name).absolute() for name in glob.glob(pattern, recursive=True)]
        found = [path for path in found if path.is_file()]
    if not found:
        raise JanusError(f"--input {pattern} matches no file; check the path.")
    return found


def _files_with(pattern: str, folder: Path, endings: tuple[str, ...]) -> list[Path]:
    other: set[str] = set()
    found: list[Path] = []
    for path in files_in(folder):
        if _METADATA.fullmatch(path.name):
            continue
        if endings and path.name.lower().endswith(endings):
            found.append(path)
        else:
            other.add(path.suffix.lower())
    if not found:
        hints = (reader for ending in sorted(other) if (reader := describe_readers(ending)))
        raise JanusError(
            f"--input {pattern} is a folder without {' or '.join(endings)} files; {next(hints, 'name the files')}."
        )
    return found


def _select_split(pattern: str, folder: Path, files: list[Path], wanted: str) -> list[Path]:
    """Returns the files of a split, if the names of the files or of their folders name several splits."""
    splits = {path: _split_of(path.relative_to(folder)) for path in files}
    names = sorted({name for name in splits.values() if name})
    without = [path for path, name in splits.items() if name is None]
    if len(names) < 2 and (without or wanted in ("train", *names)):
        return files
    if without:
        raise JanusError(
            f"--input {pattern} has files of the splits {', '.join(names)}, and {without[0].relative_to(folder)} "
            f"without a split in its name; give --input the files to read."
        )
    selected = [path for path, name in splits.items() if name == _SPLITS.get(wanted, wanted)]
    if not selected:
        raise JanusError(f"--input_split {wanted} is not in {pattern}; its splits are {', '.join(names)}.")
    return selected


def _split_of(path: Path) -> str | None:
    for part in (path.name, *reversed(path.parts[:-1])):
        if match := _SPLIT.match(part):
            return _SPLITS[match[1].lower()]
    return None


_readers: dict[str, list[str]] = {}


def register_endings(source: str, endings: Iterable[str]) -> None:
    """Records which endings a source reads, for `describe_readers`."""
    for ending in endings:
        _readers.setdefault(ending, []).append(source)


def describe_readers(ending: str) -> str:
    """Returns a clause for error messages: the sources that read files with this ending; "" if no source does."""
    sources = _readers.get(ending)
    return f"--source {' or '.join(sources)} reads {ending} files" if sources else ""


def wrong_ending(path: Path, source: str, endings: Sequence[str]) -> JanusError:
    """Returns the error for a file that a source does not read. It names the source that does."""
    readers = describe_readers(path.suffix.lower()) or "rename the file if its ending is wrong"
    return JanusError(f"{path} is not one of the files that --source {source} reads, {_describe(endings)}; {readers}.")


def _describe(endings: Sequence[str]) -> str:
    """Returns the endings in one line, without those of compressed files."""
    plain = [ending for ending in endings if ending.count(".") == 1]
    return " or ".join([", ".join(plain[:-1]), *plain[-1:]] if len(plain) > 1 else plain)
