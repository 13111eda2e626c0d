"""What a source is: a function from options to parts, each of which one process reads, entry by entry.

    @register_source("poems", Task.TEXT)
    def poems(options: SourceOptions) -> Iterator[Part]:
        for file in options.files():
            yield Part(file.label, functools.partial(_entries, file))

An entry is a key and a way to make its record. Whatever is wrong with one record is raised there, as `RejectedRecord`,
and costs that record alone; whatever is wrong with all of the input is a `JanusError` before any part is read.
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
    """One record to be.

    Attributes:
      key: names it among those of its source, for good: neither the number of processes nor of parts changes it.
      make: makes the record, or raises `RejectedRecord`.
    """

    key: str
    make: Callable[[], Record]


@dataclass(frozen=True)
class Part:
    """What one process reads in one go, and one shard is made of.

    Attributes:
      name: tells it from the others; the same for the same input and options.
      entries: reads it. It travels between processes: a `functools.partial` of a module's function, not a lambda.
        It may raise `RejectedRecord` when the rest of its input cannot be read.
      size: entries, where that is known before reading.
      stamp: says whether the input is still the same when a run is taken up again: its bytes, as a rule.
    """

    name: str
    entries: Callable[[], Iterator[Entry]]
    size: int | None = None
    stamp: int = 0


class InputFile(NamedTuple):
    """An input file, and the short name that keys are made of: its path below what all inputs have in common."""

    path: Path
    label: str

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size


_DAMAGE: tuple[type[Exception], ...] = (*PARSE_ERRORS, tarfile.TarError, zlib.error)


@contextlib.contextmanager
def reject_damaged_file(file: Path) -> Iterator[None]:
    """Makes damaged content of an archive the loss of the rest of it; a disk that fails stays an error of the run.

    Raises:
      RejectedRecord: what is inside found the content damaged.
      JanusError: the file could not be read at all.
    """
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise JanusError(f"{file} cannot be read ({error.strerror}).") from error
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise RejectedRecord(
            RejectReason.DAMAGED_FILE, f"{file} cannot be read from here on ({reason}); fetch it again."
        ) from None


@dataclass(frozen=True)
class SourceOptions:
    """What the user says about a source.

    Attributes:
      inputs: paths, in which `*` and the like stand for several; or a TFDS name.
      task: what the records teach.
      images: folder that image paths are relative to, and must lie in; None for the input file's own.
      prompts: what a user asks about an image whose caption is the answer; one is picked by the record's key.
      text_field: name of the caption's, the class's or the document's field, where it is not the usual.
      image_field: name of the image's field, likewise.
      class_names: a file with words for class names, a class a line, or a json object.
      input_split: of a TFDS data set.
      data_dir: folder of prepared TFDS data sets; None for TFDS's own.
      shard_records: entries a part, and so records a shard, where the source can be cut at will.
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
        """The input files, sorted; of a folder, those whose names end with one of `suffixes`.

        Raises:
          JanusError: there is none, or one is the pointer that git-lfs leaves for a file.
        """
        paths = sorted({path for given in self.inputs for path in _matches(given, suffixes)})
        common = os.path.commonpath([path.parent for path in paths])
        for path in paths:
            with reading(path), path.open("rb") as stream:
                check_lfs_pointer(path, stream.read(64))
        return [InputFile(path, path.relative_to(common).as_posix()) for path in paths]


def _matches(given: str, suffixes: tuple[str, ...]) -> list[Path]:
    with reading(given, "give another path"):
        path = Path(given).absolute()
        if path.is_dir():
            found = [file for file in path.iterdir() if file.is_file() and file.name.endswith(suffixes)]
            if not found or not suffixes:
                raise JanusError(f"--input {given} is a folder without {' or '.join(suffixes)} files; name the files.")
            return found
        found = [path] if path.exists() else [Path(name).absolute() for name in glob.glob(given, recursive=True)]
        found = [path for path in found if path.is_file()]
    if not found:
        raise JanusError(f"--input {given} matches no file; check the path.")
    return found


Reader = Callable[[SourceOptions], Iterable[Part]]


class Source(NamedTuple):
    """A kind of input.

    Attributes:
      kind: its name on the command line.
      tasks: that its records can serve; the first is the usual one.
      parts: reads no more of the input than it needs to cut it up.
      shard_records: records that make a shard of a good size.
    """

    kind: str
    tasks: tuple[Task, ...]
    parts: Reader
    shard_records: int


SOURCES: dict[str, Source] = {}
"""Every kind, by name."""


def register_source(kind: str, *tasks: Task, shard_records: int = 4096) -> Callable[[Reader], Reader]:
    """Adds a kind of source to `SOURCES`; see there for the arguments."""

    def register(parts: Reader) -> Reader:
        SOURCES[kind] = Source(kind, tasks, parts, shard_records)
        return parts

    return register


def get_source(kind: str) -> Source:
    """The source of that name; `MODULE:KIND` imports the module first, which then registers it.

    Raises:
      JanusError: there is none.
    """
    module, _, name = kind.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise JanusError(f"--source {kind}: {error}; give an importable module before the colon.") from error
    if name not in SOURCES:
        raise JanusError(f"--source {kind} is unknown; take one of {', '.join(sorted(SOURCES))}, or MODULE:KIND.")
    return SOURCES[name]
