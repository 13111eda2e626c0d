"""Images and captions in tables: JSON lines, CSV, TSV and Parquet, with image paths or image bytes.

{"image": "a.jpg", "caption": "A cat on a mat."}
"""

import csv
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import InputFile, Part, SourceOptions, register_source, reject_damaged_file
from janus_jax.data.sources.fields import (
    IMAGE_FIELDS,
    MAX_BYTES,
    TEXT_FIELDS,
    ImageFolder,
    caption_record,
    field_names,
    find_field,
    get_field,
    get_image,
    get_text,
)
from janus_jax.data.sources.rows import MakeRecord, Row, Span, json_lines, line_spans, rows_part
from janus_jax.errors import JanusError
from janus_jax.extras import require
from janus_jax.files import reading
from janus_jax.processing import Task


@register_source("captions", Task.GENERATION, Task.UNDERSTANDING)
def captions(options: SourceOptions) -> Iterator[Part]:
    """Reads tables of images and captions. The suffix of a file selects its format."""
    files = list(options.files(*_FORMATS))
    for file in files:
        if file.path.suffix.lower() == ".parquet":
            require(str(file.path), "pyarrow")
    for file in files:
        parts = _FORMATS.get(file.path.suffix.lower())
        if parts is None:
            raise JanusError(f"{file.path} must end with one of {', '.join(_FORMATS)}; rename it.")
        yield from parts(file, options, functools.partial(_record, ImageFolder.of(options, file.path), options))


def _record(folder: ImageFolder, options: SourceOptions, key: str, values: Mapping[str, Any]) -> Record:
    caption = get_text(get_field(values, options.text_field, TEXT_FIELDS))
    image = get_image(get_field(values, options.image_field, IMAGE_FIELDS), folder)
    return caption_record(key, caption, image, options)


def _json_parts(file: InputFile, options: SourceOptions, make_record: MakeRecord) -> Iterator[Part]:
    for span in line_spans(file, options.shard_records):
        yield span.part(json_lines, make_record)


def _csv_parts(file: InputFile, options: SourceOptions, make_record: MakeRecord) -> Iterator[Part]:
    # Quoted fields may contain line breaks, so the ends of rows are found only by parsing all rows.
    with reading(file.path), file.path.open("rb") as stream:
        lines = _TextLines(stream)
        rows = _csv_reader(file, lines)
        try:
            columns = tuple(next(rows, ()))
            _check_columns(file, columns, options)
            read = functools.partial(_csv_rows, columns)
            start, first, number = lines.bytes_read, 1, 1
            for _ in rows:
                number += 1
                if number - first == options.shard_records:
                    yield Span(file, start, lines.bytes_read, first, number - first).part(read, make_record)
                    start, first = lines.bytes_read, number
        except csv.Error as error:
            raise JanusError(f"{file.path} is invalid CSV at line {lines.number} ({error}); fix its quotes.") from error
        if number > first:
            yield Span(file, start, lines.bytes_read, first, number - first).part(read, make_record)


def _csv_rows(columns: tuple[str, ...], span: Span) -> Iterator[tuple[int, Row]]:
    with span.open() as stream:
        rows = _csv_reader(span.file, _TextLines(stream))
        for number, row in zip(range(span.first, span.first + span.size), rows, strict=False):
            if row:  # Blank lines give empty rows.
                yield number, functools.partial(_csv_values, row, columns)


def _csv_values(row: list[str], columns: tuple[str, ...]) -> Mapping[str, Any]:
    if len(row) != len(columns):
        raise RejectedRecord(RejectReason.MALFORMED, f"its row has {len(row)} fields; the table has {len(columns)}.")
    return dict(zip(columns, row, strict=True))


def _csv_reader(file: InputFile, lines: Iterator[str]) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_BYTES)
    return csv.reader(lines, delimiter="\t" if file.path.suffix.lower() == ".tsv" else ",", strict=True)


class _TextLines(Iterator[str]):
    """Iterates over the lines of a file and counts bytes and lines. Bytes that are not UTF-8 become surrogates."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.bytes_read = 0
        self.number = 0

    def __next__(self) -> str:
        line = self._stream.readline(MAX_BYTES)
        if not line:
            raise StopIteration
        text = line if self.bytes_read else line.removeprefix(b"\xef\xbb\xbf")
        self.bytes_read += len(line)
        self.number += 1
        return text.decode("utf-8", "surrogateescape")


def _parquet_parts(file: InputFile, options: SourceOptions, make_record: MakeRecord) -> Iterator[Part]:
    # A row group can only be read whole, so a part consists of whole row groups.
    import pyarrow.parquet

    with reading(file.path), pyarrow.parquet.ParquetFile(file.path) as table:
        columns = tuple(table.schema_arrow.names)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    _check_columns(file, columns, options)
    wanted = {*field_names(options.text_field, TEXT_FIELDS), *field_names(options.image_field, IMAGE_FIELDS)}
    read = functools.partial(_parquet_rows, file, [name for name in columns if name in wanted])
    begin, first, count = 0, 1, 0
    for group, size in enumerate(sizes):
        count += size
        if count >= options.shard_records or group == len(sizes) - 1:
            if count:
                groups = list(range(begin, group + 1))
                yield rows_part(file, first, count, functools.partial(read, groups, first), make_record)
            begin, first, count = group + 1, first + count, 0


def _parquet_rows(file: InputFile, columns: list[str], groups: list[int], first: int) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet

    number = first
    with reject_damaged_file(file.path), pyarrow.parquet.ParquetFile(file.path) as table:
        # Small batches, because a row may contain an image.
        for batch in table.iter_batches(batch_size=16, row_groups=groups, columns=columns):
            for values in batch.to_pylist():
                yield number, functools.partial(dict, values)
                number += 1


def _check_columns(file: InputFile, columns: tuple[str, ...], options: SourceOptions) -> None:
    where = f"{file.path} has no column"
    find_field(where, columns, "--text_field", options.text_field, TEXT_FIELDS)
    find_field(where, columns, "--image_field", options.image_field, IMAGE_FIELDS)


_FORMATS: dict[str, Callable[[InputFile, SourceOptions, MakeRecord], Iterator[Part]]] = {
    ".jsonl": _json_parts,
    ".csv": _csv_parts,
    ".tsv": _csv_parts,
    ".parquet": _parquet_parts,
}
