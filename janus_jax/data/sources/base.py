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
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.input_files import InputFile, find_files, register_endings
from janus_jax.errors import JanusError
from janus_jax.extras import require
from janus_jax.files import PARSE_ERRORS
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


CaptionFrom = Literal["text", "name", "folder"]
TextUnit = Literal["line", "paragraph", "file"]

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
      class_names: File with a caption for each class, see `class_names.read_class_names`.
      caption_from: What the caption of an image in a folder is: its file name, the name of its folder, or the content
        of the text file with the same base name. None: text files if the folder has any, otherwise file names.
      text_unit: Unit of a `.txt` file that makes one document: a line, a paragraph or the whole file.
      input_split: Split of a TFDS dataset, or of a folder whose files name several splits.
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
    caption_from: CaptionFrom | None = None
    text_unit: TextUnit = "line"
    input_split: str = "train"
    data_dir: str | None = None
    shard_records: int = 4096

    def files(self, *endings: str) -> list[InputFile]:
        """Returns the input files, sorted. Of a folder, returns the files with one of the endings.

        Raises:
          JanusError: See `find_files`; or a file needs a package that is not installed.
        """
        files = find_files(self.inputs, endings, self.input_split)
        # Before the first file is read, which may take long.
        for file in files:
            if file.path.suffix.lower() in (".parquet", ".arrow", ".zst"):
                require(str(file.path), "pyarrow")
        return files


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


def register_source(
    name: str, *tasks: Task, shard_records: int = 4096, endings: Iterable[str] = ()
) -> Callable[[SplitInput], SplitInput]:
    """Returns a decorator that registers a function as a source.

    Args:
      name: See `Source`.
      *tasks: See `Source`.
      shard_records: See `Source`.
      endings: Endings of the files that the source reads. The error of another source that is given such a file
        suggests this source.
    """
    register_endings(name, endings)

    def register(parts: SplitInput) -> SplitInput:
        SOURCES[name] = Source(name, tasks, parts, shard_records)
        return parts

    return register


def get_source(name: str) -> Source:
    """Returns a registered source. See `find_registered`."""
    return find_registered(SOURCES, name, "--source")
