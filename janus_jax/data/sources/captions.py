"""Images and their captions in tables: json lines, CSV (or TSV), Parquet; paths, or the images themselves.

    {"image": "a.jpg", "caption": "A cat on a mat."}

For generation the caption is the request, for understanding the answer.
"""

import csv
import functools
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

from janus_jax.data.records import Record
from janus_jax.data.sources.base import (
    Entry,
    InputFile,
    Part,
    RejectedRecord,
    RejectReason,
    SourceOptions,
    register_source,
    reject_damaged_file,
)
from janus_jax.data.sources.fields import (
    IMAGE_FIELDS,
    LARGEST_FILE,
    TEXT_FIELDS,
    ImageFolder,
    caption_record,
    field,
    image_of,
    text_of,
)
from janus_jax.data.sources.lines import Span, json_lines, line_spans
from janus_jax.errors import JanusError
from janus_jax.files import reading
from janus_jax.processing import Task

Row = Callable[[], Mapping[str, Any]]
"""Gives a row's values by column, or raises `RejectedRecord`."""

Rows = Callable[[], Iterator[tuple[int, Row]]]
"""Reads a part: rows by their number, counted from 1."""


class Piece(NamedTuple):
    """A part of one table."""

    name: str
    rows: Rows
    size: int


@register_source("captions", Task.GENERATION, Task.UNDERSTANDING)
def captions(options: SourceOptions) -> Iterator[Part]:
    """The file's ending says what kind of table it is."""
    for file in options.files(*_TABLES):
        pieces = _TABLES.get(file.path.suffix.lower())
        if pieces is None:
            raise JanusError(f"{file.path} ends with none of {', '.join(_TABLES)}; name it for what it is.")
        for piece in pieces(file, options):
            yield Part(piece.name, functools.partial(_entries, piece.rows, file, options), piece.size, file.bytes)


def _entries(rows: Rows, file: InputFile, options: SourceOptions) -> Iterator[Entry]:
    folder = ImageFolder.of(options, file.path)
    for number, row in rows():
        key = f"{file.label}:{number}"
        yield Entry(key, functools.partial(_record, key, row, folder, options))


def _record(key: str, row: Row, folder: ImageFolder, options: SourceOptions) -> Record:
    values = row()
    caption = text_of(field(values, options.text_field, TEXT_FIELDS))
    return caption_record(key, caption, image_of(field(values, options.image_field, IMAGE_FIELDS), folder), options)


def _json_pieces(file: InputFile, options: SourceOptions) -> Iterator[Piece]:
    for span in line_spans(file, options.shard_records):
        yield Piece(span.name, functools.partial(json_lines, span), span.size)


def _csv_pieces(file: InputFile, options: SourceOptions) -> Iterator[Piece]:
    """Rows may hold line breaks between quotes: where they end, only reading them tells."""
    with reading(file.path), file.path.open("rb") as stream:
        lines = _Lines(stream)
        rows = _csv_reader(file, lines)
        try:
            columns = tuple(next(rows, ()))
            _check_columns(file, columns, options)
            start, first, number = lines.read, 1, 1
            for _ in rows:
                number += 1
                if number - first == options.shard_records:
                    yield _csv_piece(Span(file, start, lines.read, first, number - first), columns)
                    start, first = lines.read, number
        except csv.Error as error:
            raise JanusError(f"{file.path} is no CSV at line {lines.number} ({error}); mend its quotes.") from error
        if number > first:
            yield _csv_piece(Span(file, start, lines.read, first, number - first), columns)


def _csv_piece(span: Span, columns: tuple[str, ...]) -> Piece:
    return Piece(span.name, functools.partial(_csv_rows, span, columns), span.size)


def _csv_rows(span: Span, columns: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    with span.open() as stream:
        rows = _csv_reader(span.file, _Lines(stream))
        for number, row in zip(range(span.first, span.first + span.size), rows, strict=False):
            if row:  # a blank line is an empty row
                yield number, functools.partial(_csv_values, row, columns)


def _csv_values(row: list[str], columns: tuple[str, ...]) -> Mapping[str, Any]:
    if len(row) != len(columns):
        raise RejectedRecord(
            RejectReason.MALFORMED, f"its row has {len(row)} fields, the table {len(columns)} columns."
        )
    return dict(zip(columns, row, strict=True))


def _csv_reader(file: InputFile, lines: Iterator[str]) -> Iterator[list[str]]:
    csv.field_size_limit(LARGEST_FILE)
    return csv.reader(lines, delimiter="\t" if file.path.suffix.lower() == ".tsv" else ",", strict=True)


class _Lines(Iterator[str]):
    """A file's lines as text, with the bytes and lines read so far. What is no UTF-8 stays visible as such."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.read = 0
        self.number = 0

    def __next__(self) -> str:
        line = self._stream.readline(LARGEST_FILE)
        if not line:
            raise StopIteration
        text = line.removeprefix(b"\xef\xbb\xbf") if not self.read else line
        self.read += len(line)
        self.number += 1
        return text.decode("utf-8", "surrogateescape")


def _parquet_pieces(file: InputFile, options: SourceOptions) -> Iterator[Piece]:
    """Row groups are read whole, so a part is some of them."""
    parquet = _pyarrow(file)
    with reading(file.path), parquet.ParquetFile(file.path) as table:
        columns = tuple(table.schema_arrow.names)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    _check_columns(file, columns, options)
    usual = (options.text_field or TEXT_FIELDS, options.image_field or IMAGE_FIELDS)
    wanted = [name for name in columns if any(name == names or name in names for names in usual)]
    begin, first, count = 0, 1, 0
    for group, size in enumerate(sizes):
        count += size
        if count >= options.shard_records or group == len(sizes) - 1:
            rows = functools.partial(_parquet_rows, file, tuple(range(begin, group + 1)), first, wanted)
            if count:
                yield Piece(f"{file.label}:{first}", rows, count)
            begin, first, count = group + 1, first + count, 0


def _parquet_rows(
    file: InputFile, groups: tuple[int, ...], first: int, columns: list[str]
) -> Iterator[tuple[int, Row]]:
    number = first
    with reject_damaged_file(file.path), _pyarrow(file).ParquetFile(file.path) as table:
        # Few at a time: a row may hold an image.
        for batch in table.iter_batches(batch_size=16, row_groups=list(groups), columns=columns):
            for values in batch.to_pylist():
                yield number, functools.partial(dict, values)
                number += 1


def _pyarrow(file: InputFile) -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise JanusError(f"{file.path} needs pyarrow to be read; pip install 'janus_jax[parquet]'.") from error
    return pyarrow.parquet


def _check_columns(file: InputFile, columns: tuple[str, ...], options: SourceOptions) -> None:
    for flag, name, usual in (
        ("--text_field", options.text_field, TEXT_FIELDS),
        ("--image_field", options.image_field, IMAGE_FIELDS),
    ):
        if not set(columns) & ({name} if name else set(usual)):
            raise JanusError(
                f"{file.path} has no column {name or ' or '.join(usual)}, only {', '.join(columns) or 'none'}; "
                f"name the right one with {flag}."
            )


_TABLES: dict[str, Callable[[InputFile, SourceOptions], Iterator[Piece]]] = {
    ".jsonl": _json_pieces,
    ".csv": _csv_pieces,
    ".tsv": _csv_pieces,
    ".parquet": _parquet_pieces,
}
