"""Splits files of rows into spans that are read independently, and reads spans of JSON lines."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import Entry, InputFile, Part
from janus_jax.data.sources.fields import MAX_BYTES, json_object
from janus_jax.files import reading

Row = Callable[[], Mapping[str, Any]]
"""Function that returns the values of a row by field, or raises `RejectedRecord`."""

Rows = Callable[[], Iterator[tuple[int, Row]]]
"""Function that yields rows and their numbers, counted from 1."""

MakeRecord = Callable[[str, Mapping[str, Any]], Record]
"""Function from the key and the values of a row to a record. It may raise `RejectedRecord`."""


def rows_part(file: InputFile, first: int, size: int, rows: Rows, make_record: MakeRecord) -> Part:
    """Returns the part that consists of `size` rows from row `first` on. The functions must be picklable."""
    entries = functools.partial(_entries, file.label, rows, make_record)
    return Part(f"{file.label}:{first}", entries, size, file.bytes)


def _entries(label: str, rows: Rows, make_record: MakeRecord) -> Iterator[Entry]:
    for number, row in rows():
        key = f"{label}:{number}"
        yield Entry(key, functools.partial(_make, make_record, key, row))


def _make(make_record: MakeRecord, key: str, row: Row) -> Record:
    return make_record(key, row())


@dataclass(frozen=True)
class Span:
    """A range of rows of a file.

    Attributes:
      file: The file.
      start: First byte.
      stop: Byte after the last one.
      first: Number of the first row, counted from 1.
      size: Number of rows.
    """

    file: InputFile
    start: int
    stop: int
    first: int
    size: int

    def open(self) -> BinaryIO:
        """Opens the file at the start of the span."""
        stream = self.file.path.open("rb")
        stream.seek(self.start)
        return stream

    def part(self, read: Callable[["Span"], Iterator[tuple[int, Row]]], make_record: MakeRecord) -> Part:
        """Returns the part that reads this span."""
        return rows_part(self.file, self.first, self.size, functools.partial(read, self), make_record)


def line_spans(file: InputFile, size: int) -> Iterator[Span]:
    """Yields spans of `size` lines of a file. Holds only one line in memory."""
    start = stop = 0
    first = number = 1
    with reading(file.path), file.path.open("rb") as stream:
        for length, _ in _lines(stream):
            stop += length
            number += 1
            if number - first == size:
                yield Span(file, start, stop, first, size)
                start, first = stop, number
    if stop > start:
        yield Span(file, start, stop, first, number - first)


def json_lines(span: Span) -> Iterator[tuple[int, Row]]:
    """Yields the JSON objects of a span, one per line, with their line numbers. Skips blank lines."""
    with span.open() as stream:
        for number, (_, line) in zip(range(span.first, span.first + span.size), _lines(stream), strict=False):
            if line is None or line.strip():
                yield number, functools.partial(_parse_line, line, f"line {number}")


def _parse_line(line: bytes | None, name: str) -> Mapping[str, Any]:
    if line is None:
        raise RejectedRecord(RejectReason.TOO_LONG, f"{name} has more than {MAX_BYTES} bytes.")
    return json_object(line, name)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yields the length and content of each line; None for the content of a line that is too long."""
    while content := stream.readline(MAX_BYTES):
        length = len(content)
        complete = content.endswith(b"\n") or length < MAX_BYTES
        while not complete:
            more = stream.readline(MAX_BYTES)
            length += len(more)
            complete = more.endswith(b"\n") or len(more) < MAX_BYTES
            content = b""
        yield length, content or None
