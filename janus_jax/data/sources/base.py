"""Sources: functions from options to parts of the input, registered by name.

    @register_source("poems", Task.TEXT)
    def poems(options: SourceOptions) -> Iterator[Part]:
        for file in options.files(".txt"):
            yield Part(file.label, functools.partial(_entries, file))

One process reads a part and writes it as one shard. A part yields entries: a key, and a function that makes the record.
`RejectedRecord` in that function costs one record. Errors of the whole input are a `JanusError` before a part is read.
"""

import contextlib
import glob
import importlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, check_lfs_pointer, reading
from janus_jax.processing import Task


class Entry(NamedTuple):
    """One entry of the input.

    Attributes:
      key: Unique, permanent name of the record within its source, independent of parts and processes.
      make: Makes the record, or raises `RejectedRecord`.
    """

    key: str
    make: Callable[[], Record]


@dataclass(frozen=True)
class Part:
    """A piece of the input, read by one process and written as one shard.

    Attributes:
      name: Unique name, the same for the same input and options.
      entries: Reads the entries. It is pickled, so it is a `functools.partial` of a module's function, not a lambda. It
        may raise `RejectedRecord` if the rest of its input is unreadable.
      size: Number of entries; None if unknown before reading.
      stamp: Number that changes with the input, usually the bytes of the file. A changed input is not resumed.
    """

    name: str
    entries: Callable[[], Iterator[Entry]]
    size: int | None = None
    stamp: int = 0


class InputFile(NamedTuple):
    """An input file, and its path relative to the folder that all inputs share, which keys start with."""

    path: Path
    label: str

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size


_DAMAGE: tuple[type[Exception], ...] = (*PARSE_ERRORS, tarfile.TarError, zlib.error)


@contextlib.contextmanager
def reject_damaged_file(file: Path) -> Iterator[None]:
    """Turns damaged content of an archive into one rejection; I/O errors still end the run.

    Raises:
      RejectedRecord: The block found damaged content.
      JanusError: The file cannot be read.
    """
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise JanusError(f"{file} cannot be read ({error.strerror}).") from error
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        message = f"{file} cannot be read from here on ({reason}); fetch it again."
        raise RejectedRecord(RejectReason.DAMAGED_FILE, message) from None


@dataclass(frozen=True)
class SourceOptions:
    """Options of a source.

    Attributes:
      inputs: Paths or glob patterns; for TFDS the name of a data set.
      task: Task of the records.
      images: Folder of the image paths, which must not leave it. Default: the folder of the input file.
      prompts: Questions that captions answer. The record's key selects one.
      text_field: Field of the caption, class or document. Default: usual names.
      image_field: Field of the image. Default: usual names.
      class_names: File with captions of classes, one class per line or a JSON object.
      input_split: Split of a TFDS data set.
      data_dir: Folder of prepared TFDS data sets. Default: TFDS's own.
      shard_records: Entries per part, and so records per shard, if the source can be split anywhere.
    """

    inputs: tuple[str, ...]
    task: Task
    images: str | None = None
    prompts: tuple[str, ...] = ("Describe the image.",)
    text_field: str | None = None
    image_field: str | None = None
    class_names: str | None = None
    input_split: str = "train"
    data_dir: str | None = None
    shard_records: int = 4096

    def files(self, *suffixes: str) -> list[InputFile]:
        """Returns the input files, sorted. Of a folder, takes the files with one of the suffixes.

        Raises:
          JanusError: No file matches, or one is a git-lfs pointer.
        """
        paths = sorted({path for pattern in self.inputs for path in _matches(pattern, suffixes)})
        common = os.path.commonpath([path.parent for path in paths])
        for path in paths:
            with reading(path), path.open("rb") as stream:
                check_lfs_pointer(path, stream.read(64))
        return [InputFile(path, path.relative_to(common).as_posix()) for path in paths]


def _matches(pattern: str, suffixes: tuple[str, ...]) -> list[Path]:
    with reading(pattern, "give another path"):
        path = Path(pattern).absolute()
        if path.is_dir():
            found = [file for file in path.iterdir() if file.is_file() and file.name.endswith(suffixes)]
            if not found or not suffixes:
                raise JanusError(f"--input {pattern} is a folder without {' or '.join(suffixes)} files; name them.")
            return found
        found = [path] if path.exists() else [Path(name).absolute() for name in glob.glob(pattern, recursive=True)]
        found = [path for path in found if path.is_file()]
    if not found:
        raise JanusError(f"--input {pattern} matches no file; check the path.")
    return found


class Source(NamedTuple):
    """A registered source.

    Attributes:
      name: Name on the command line.
      tasks: Supported tasks, the default first.
      parts: Splits the input, reading no more of it than necessary.
      shard_records: Default number of records per shard.
    """

    name: str
    tasks: tuple[Task, ...]
    parts: "SplitInput"
    shard_records: int


SplitInput = Callable[[SourceOptions], Iterable[Part]]

SOURCES: dict[str, Source] = {}
"""Registered sources by name."""


def register_source(name: str, *tasks: Task, shard_records: int = 4096) -> Callable[[SplitInput], SplitInput]:
    """Registers the decorated function as a source; see `Source` for the arguments."""

    def register(parts: SplitInput) -> SplitInput:
        SOURCES[name] = Source(name, tasks, parts, shard_records)
        return parts

    return register


def get_source(name: str) -> Source:
    """Returns a registered source. For `MODULE:NAME` it imports the module first, which registers the source.

    Raises:
      JanusError: The module cannot be imported, or no source has the name.
    """
    module, _, short_name = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise JanusError(f"--source {name}: {error}; give an importable module before the colon.") from error
    if short_name not in SOURCES:
        raise JanusError(f"--source {name} is unknown; use {', '.join(sorted(SOURCES))}, or MODULE:NAME.")
    return SOURCES[short_name]
