"""Reads tables: JSON lines and arrays, CSV, TSV, Parquet and Arrow, also compressed with gzip or zstd.

The content of a file selects its format, except for CSV and TSV. In all formats, a row maps column names to values, and
the source makes a record from it.
"""

import contextlib
import csv
import functools
import gzip
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import Part, SourceOptions, reject_damaged_file
from janus_jax.data.sources.fields import MAX_BYTES, as_object, find_field, json_object
from janus_jax.data.sources.input_files import InputFile, wrong_ending
from janus_jax.data.sources.rows import (
    BOM,
    MakeRecord,
    Row,
    Span,
    array_rows,
    array_spans,
    line_rows,
    line_spans,
    rows_part,
    span_lines,
)
from janus_jax.errors import JanusError
from janus_jax.extras import require
from janus_jax.files import read_text, reading

_PLAIN = (".jsonl", ".json", ".ndjson", ".csv", ".tsv")
TABLE_ENDINGS = (*_PLAIN, ".parquet", ".arrow", *(end + packed for end in _PLAIN for packed in (".gz", ".zst")))

_BATCH_ROWS = 16
"""Rows of Parquet and Arrow that are read at a time. Few, because a row may contain an image."""

_ARROW_FILE = b"ARROW1"

NOT_READ = object()
"""Value of a column that the record does not need and that is not read."""


@dataclass(frozen=True)
class Columns:
    """Columns that a source reads.

    Attributes:
      known: Columns that the source can use. Only these are read from Parquet and Arrow files.
      required: One entry per required column: the flag that selects it, the value of the flag, and the default names.
    """

    known: frozenset[str]
    required: tuple[tuple[str, str | None, tuple[str, ...]], ...] = ()

    def check(self, file: Path, found: Iterable[str]) -> None:
        """Checks that a table has the required columns.

        Raises:
          JanusError: It does not have them.
        """
        found = list(found)
        for flag, name, usual in self.required:
            find_field(f"{file} has no column", found, flag, name, usual)


@dataclass(frozen=True)
class TableReader:
    """Reads the tables of a source.

    Attributes:
      source: Name of the source, for messages.
      columns: Columns that the source reads.
      options: Options of the source.
    """

    source: str
    columns: Columns
    options: SourceOptions

    def parts(self, file: InputFile, make_record: MakeRecord) -> Iterator[Part]:
        """Splits a file into parts.

        Raises:
          JanusError: The file is not a table, is damaged, or lacks a required column.
        """
        with reading(file.path), file.path.open("rb") as stream:
            start = stream.read(512)
        codec = _codec(start)
        ending = file.path.suffixes[-2:][0].lower() if codec and len(file.path.suffixes) > 1 else _ending(file)
        if start.startswith(b"PAR1") or ending == ".parquet":
            return self._parquet_parts(file, make_record)
        if start.startswith((_ARROW_FILE, b"\xff\xff\xff\xff")) or ending == ".arrow":
            return self._arrow_parts(file, make_record)
        if start[257:262] == b"ustar" or ending not in _PLAIN:
            raise wrong_ending(file.path, self.source, TABLE_ENDINGS)
        if codec:
            if codec == "zstd":
                require(str(file.path), "pyarrow")
            read = functools.partial(_packed_rows, file, codec, ending, self.columns)
            return iter([rows_part(file, 1, None, read, make_record)])
        if ending in (".csv", ".tsv"):
            return self._csv_parts(file, make_record)
        return self._json_parts(file, make_record)

    def _json_parts(self, file: InputFile, make_record: MakeRecord) -> Iterator[Part]:
        first = _first_character(file)
        if first == "[":
            for span in array_spans(file, self.options.shard_records):
                yield span.part(array_rows, make_record)
        elif first == "{" and file.path.suffix.lower() == ".json" and _is_one_object(file.path):
            yield rows_part(file, 1, 1, functools.partial(_object_row, file.path), make_record)
        else:
            read = functools.partial(span_lines, json_object)
            for span in line_spans(file, self.options.shard_records):
                yield span.part(read, make_record)

    def _csv_parts(self, file: InputFile, make_record: MakeRecord) -> Iterator[Part]:
        # Quoted fields may contain line breaks, so the ends of rows are found only by parsing all rows.
        with reading(file.path), file.path.open("rb") as stream:
            lines = _TextLines(stream)
            rows = _csv_reader(file.path, lines)
            try:
                columns = tuple(next(rows, ()))
                self.columns.check(file.path, columns)
                read = functools.partial(_csv_span, columns)
                start, first, number = lines.bytes_read, 1, 1
                for _ in rows:
                    number += 1
                    if number - first == self.options.shard_records:
                        yield Span(file, start, lines.bytes_read, first, number - first).part(read, make_record)
                        start, first = lines.bytes_read, number
            except csv.Error as error:
                raise JanusError(
                    f"{file.path} is invalid CSV at line {lines.number} ({error}); fix its quotes."
                ) from error
            if number > first:
                yield Span(file, start, lines.bytes_read, first, number - first).part(read, make_record)

    def _parquet_parts(self, file: InputFile, make_record: MakeRecord) -> Iterator[Part]:
        # A row group can only be read whole, so a part consists of whole row groups.
        with reading(file.path), _pyarrow(file).parquet.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        self.columns.check(file.path, names)
        read = functools.partial(_parquet_rows, file, self.columns.known)
        begin, first, count = 0, 1, 0
        for group, size in enumerate(sizes):
            count += size
            if count >= self.options.shard_records or group == len(sizes) - 1:
                if count:
                    groups = list(range(begin, group + 1))
                    yield rows_part(file, first, count, functools.partial(read, groups, first), make_record)
                begin, first, count = group + 1, first + count, 0

    def _arrow_parts(self, file: InputFile, make_record: MakeRecord) -> Iterator[Part]:
        # `save_to_disk` writes streams, which can only be read from their start.
        with reading(file.path), _open_arrow(file) as (schema, _):
            names = schema.names
        self.columns.check(file.path, names)
        yield rows_part(file, 1, None, functools.partial(_arrow_rows, file, self.columns.known), make_record)


def _ending(file: InputFile) -> str:
    return file.path.suffix.lower()


def _codec(start: bytes) -> str | None:
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    return "zstd" if start.startswith(b"\x28\xb5\x2f\xfd") else None


def open_packed(file: InputFile, codec: str) -> BinaryIO:
    """Opens a file that is compressed with gzip or zstd."""
    if codec == "gzip":
        return io.BufferedReader(gzip.open(file.path, "rb"))
    return io.BufferedReader(_pyarrow(file).input_stream(str(file.path), compression=codec))


def packed_codec(file: InputFile) -> str | None:
    """Returns the compression of a file: "gzip", "zstd" or None."""
    with reading(file.path), file.path.open("rb") as stream:
        codec = _codec(stream.read(8))
    if codec == "zstd":
        require(str(file.path), "pyarrow")
    return codec


def _packed_rows(file: InputFile, codec: str, ending: str, columns: Columns) -> Iterator[tuple[int, Row]]:
    with reject_damaged_file(file.path), open_packed(file, codec) as stream:
        if ending in (".csv", ".tsv"):
            lines = _TextLines(stream)
            rows = _csv_reader(file.path.with_suffix(""), lines)
            names = tuple(next(rows, ()))
            columns.check(file.path, names)
            yield from _csv_rows(names, rows, itertools.count(1))
        elif stream.peek(1 << 12).removeprefix(BOM.encode()).lstrip()[:1] == b"[":  # type: ignore[attr-defined]
            for number, value in enumerate(json.loads(stream.read().decode("utf-8-sig")), 1):
                yield number, functools.partial(as_object, value, f"element {number}")
        else:
            yield from line_rows(json_object, stream, itertools.count(1))


def _first_character(file: InputFile) -> str:
    with reading(file.path), file.path.open("rb") as stream:
        while block := stream.read(1 << 16):
            if start := block.removeprefix(BOM.encode()).lstrip():
                return start[:1].decode("latin-1")
    return ""


def _is_one_object(path: Path) -> bool:
    """Returns whether a file is one JSON object in several lines."""
    with reading(path), path.open("rb") as stream:
        line = next((line for line in stream if line.removeprefix(BOM.encode()).strip()), b"")
        if not stream.read(1) or path.stat().st_size > MAX_BYTES:
            return False
    try:
        json_object(line, "")
    except RejectedRecord:
        try:
            json_object(path.read_bytes(), "")
        except RejectedRecord:
            return False
        return True
    return False


def _object_row(path: Path) -> Iterator[tuple[int, Row]]:
    yield 1, functools.partial(json_object, read_text(path), "the file")


def _csv_span(columns: tuple[str, ...], span: Span) -> Iterator[tuple[int, Row]]:
    with span.open() as stream:
        rows = _csv_reader(span.file.path, _TextLines(stream))
        yield from _csv_rows(columns, rows, range(span.first, span.first + span.size))


def _csv_rows(columns: tuple[str, ...], rows: Iterator[list[str]], numbers: Iterable[int]) -> Iterator[tuple[int, Row]]:
    for number, row in zip(numbers, rows, strict=False):
        if row:  # Blank lines give empty rows.
            yield number, functools.partial(_csv_values, row, columns)


def _csv_values(row: list[str], columns: tuple[str, ...]) -> Mapping[str, Any]:
    if len(row) != len(columns):
        raise RejectedRecord(RejectReason.MALFORMED, f"its row has {len(row)} fields; the table has {len(columns)}.")
    return dict(zip(columns, row, strict=True))


def _csv_reader(path: Path, lines: Iterator[str]) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_BYTES)
    return csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)


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
        text = line if self.bytes_read else line.removeprefix(BOM.encode())
        self.bytes_read += len(line)
        self.number += 1
        return text.decode("utf-8", "surrogateescape")


def _pyarrow(file: InputFile) -> ModuleType:
    require(str(file.path), "pyarrow")
    import pyarrow
    import pyarrow.parquet

    return pyarrow


def _parquet_rows(file: InputFile, known: frozenset[str], groups: list[int], first: int) -> Iterator[tuple[int, Row]]:
    with reject_damaged_file(file.path), _pyarrow(file).parquet.ParquetFile(file.path) as table:
        names = table.schema_arrow.names
        columns = [name for name in names if name in known]
        batches = table.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=columns)
        yield from _batch_rows(batches, table.schema_arrow, columns, first)


@contextlib.contextmanager
def _open_arrow(file: InputFile) -> Iterator[tuple[Any, Iterable[Any]]]:
    """Opens an Arrow file or stream. Yields its schema and batches."""
    pyarrow = _pyarrow(file)
    with pyarrow.memory_map(str(file.path)) as stream:
        is_file = stream.read(len(_ARROW_FILE)) == _ARROW_FILE
        stream.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(stream)
            yield reader.schema, map(reader.get_batch, range(reader.num_record_batches))
        else:
            reader = pyarrow.ipc.open_stream(stream)
            yield reader.schema, reader


def _arrow_rows(file: InputFile, known: frozenset[str]) -> Iterator[tuple[int, Row]]:
    with reject_damaged_file(file.path), _open_arrow(file) as (schema, batches):
        columns = [name for name in schema.names if name in known]
        slices = (
            batch.slice(start, _BATCH_ROWS).select(columns)
            for batch in batches
            for start in range(0, batch.num_rows, _BATCH_ROWS)
        )
        yield from _batch_rows(slices, schema, columns, 1)


def _batch_rows(batches: Iterable[Any], schema: Any, columns: Sequence[str], first: int) -> Iterator[tuple[int, Row]]:
    unread = {name: NOT_READ for name in schema.names if name not in columns}
    classes = {name: names for name, names in _class_names(schema).items() if name in columns}
    number = first
    for batch in batches:
        for values in batch.to_pylist():
            yield number, functools.partial(_arrow_values, values, classes, unread)
            number += 1


def _arrow_values(
    values: dict[str, Any], classes: Mapping[str, Sequence[str]], unread: Mapping[str, object]
) -> Mapping[str, Any]:
    named: dict[str, Any] = {}
    for name, class_names in classes.items():
        if isinstance(label := values[name], int) and 0 <= label < len(class_names):
            named[name] = class_names[label]
    return {**values, **unread, **named}


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Returns the class names by column that the `datasets` library stores in the schema."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return {}
    features = json.loads(metadata).get("info", {}).get("features", {})
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }
