"""Sources: functions from options to parts of the input, registered by name.

    @register_source("poems", Task.TEXT)
    def poems(options: SourceOptions) -> Iterator[Part]:
        for file in options.files(".txt"):
            yield Part(file.label, functools.partial(_entries, file))

One process reads a part and writes it as one shard. A part yields entries: a key, and a function that makes the record.
If that function raises `RejectedRecord`, only that record is skipped. Errors that concern the whole input raise
`JanusError` before any part is read.
"""

import contextlib
import glob
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
from janus_jax.registries import find_registered


class Entry(NamedTuple):
    """One entry of the input.

    Attributes:
      key: Unique, permanent name of the record within its source, independent of parts and processes.
      make: Returns the record, or raises `RejectedRecord`.
    """

    key: str
    make: Callable[[], Record]


@dataclass(frozen=True)
class Part:
    """A piece of the input, read by one process and written as one shard.

    Attributes:
      name: Unique name. The same input and options give the same name.
      entries: Function that yields the entries. It must be picklable, such as a `functools.partial` of a module-level
        function. It may raise `RejectedRecord` if the rest of the part is unreadable.
      size: Number of entries; None if unknown before reading.
      stamp: Number that changes when the input changes, usually the size of the file. A run does not resume if it has
        changed.
    """

    name: str
    entries: Callable[[], Iterator[Entry]]
    size: int | None = None
    stamp: int = 0


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


_DAMAGE: tuple[type[Exception], ...] = (*PARSE_ERRORS, tarfile.TarError, zlib.error)


@contextlib.contextmanager
def reject_damaged_file(file: Path) -> Iterator[None]:
    """Context manager that turns errors in the content of an archive into `RejectedRecord`.

    Raises:
      RejectedRecord: The content is damaged.
      JanusError: The file cannot be read because of an I/O error.
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
      inputs: Paths or glob patterns; for TFDS the name of a dataset.
      task: Task of the records.
      images: Folder of the images. Image paths are relative to it and must not lead out of it. Default: the folder of
        the input file.
      prompts: Questions to which a caption is the answer. The record's key selects one.
      text_field: Field of the caption, class or document. Default: the source's usual names.
      image_field: Field of the image. Default: the source's usual names.
      class_names: File with a caption for each class: lines of a name and a caption, or a JSON object.
      input_split: Split of a TFDS dataset.
      data_dir: Folder of TFDS datasets. Default: TFDS's own.
      shard_records: Entries per part, if the source can be split anywhere. A shard has at most as many records.
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
        """Returns the input files, sorted. If an input is a folder, returns its files with one of the suffixes.

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
      parts: Function that splits the input into parts. It should read no more of the input than necessary.
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
    """Returns a decorator that registers a function as a source. `Source` describes the arguments."""

    def register(parts: SplitInput) -> SplitInput:
        SOURCES[name] = Source(name, tasks, parts, shard_records)
        return parts

    return register


def get_source(name: str) -> Source:
    """Returns a registered source. See `find_registered`."""
    return find_registered(SOURCES, name, "--source")
