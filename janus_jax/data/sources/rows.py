"""Splits JSON files into spans of objects that are read independently, and reads spans."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import Entry, Part
from janus_jax.data.sources.fields import MAX_BYTES, as_object
from janus_jax.data.sources.input_files import InputFile
from janus_jax.errors import JanusError
from janus_jax.files import read_text, reading

Row = Callable[[], Mapping[str, Any]]
"""Function that returns the values of a row by field, or raises `RejectedRecord`."""

Rows = Callable[[], Iterator[tuple[int, Row]]]
"""Function that yields rows and their numbers, counted from 1."""

MakeRecord = Callable[[str, Mapping[str, Any]], Record]
"""Function from the key and the values of a row to a record. It may raise `RejectedRecord`."""

BOM = "\ufeff"
_SPACE = " \t\r\n"


def rows_part(file: InputFile, first: int, size: int | None, rows: Rows, make_record: MakeRecord) -> Part:
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


Parse = Callable[[bytes, str], Mapping[str, Any]]
"""Function from a line and its name in messages to the values of a row."""


def span_lines(parse: Parse, span: Span) -> Iterator[tuple[int, Row]]:
    """Yields the lines of a span as rows, with their numbers. Skips blank lines."""
    with span.open() as stream:
        yield from line_rows(parse, stream, range(span.first, span.first + span.size))


def line_rows(parse: Parse, stream: BinaryIO, numbers: Iterable[int]) -> Iterator[tuple[int, Row]]:
    """Yields the lines of a stream as rows, with the given numbers. Skips blank lines."""
    for number, (_, line) in zip(numbers, _lines(stream), strict=False):
        if line is None or line.strip():
            yield number, functools.partial(_parse_line, parse, line, f"line {number}")


def _parse_line(parse: Parse, line: bytes | None, name: str) -> Mapping[str, Any]:
    if line is None:
        raise RejectedRecord(RejectReason.TOO_LONG, f"{name} has more than {MAX_BYTES} bytes.")
    return parse(line, name)


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


def array_spans(file: InputFile, size: int) -> Iterator[Span]:
    """Yields spans of `size` elements of a JSON array.

    Only the text is held in memory, not the objects: 1 GB instead of 6 GB for LLaVA's largest file.

    Raises:
      JanusError: The file is not a JSON array.
    """
    remedy = "fetch it again, or fix it"
    text = read_text(file.path, remedy)
    decode = json.JSONDecoder().raw_decode
    with reading(file.path), file.path.open("rb") as stream:
        mark = len(BOM.encode()) if stream.read(3) == BOM.encode() else 0  # `read_text` removes it.
    at = _skip(text, 0) + 1  # After the bracket.
    begun, start, count, first = at, mark + len(text[:at].encode()), 0, 1
    with reading(file.path, remedy):
        at = _skip(text, at)
        while text[at : at + 1] != "]":
            _, at = decode(text, at)
            at = _skip(text, at)
            if text[at : at + 1] not in (",", "]"):
                raise JanusError(f"{file.path} is not a JSON array: expected , or ] at character {at}; {remedy}.")
            count += 1
            if text[at] == ",":
                after = _skip(text, at + 1)
                if count == size:
                    stop = start + len(text[begun:after].encode())
                    yield Span(file, start, stop, first, count)
                    begun, start, count, first = after, stop, 0, first + count
                at = after
        if count:
            yield Span(file, start, start + len(text[begun:at].encode()), first, count)


def _skip(text: str, at: int, characters: str = _SPACE) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def array_rows(span: Span) -> Iterator[tuple[int, Row]]:
    """Yields the objects of a span of a JSON array with their numbers."""
    with span.open() as stream:
        text = stream.read(span.stop - span.start).decode("utf-8")
    decode, at = json.JSONDecoder().raw_decode, _skip(text, 0)
    for number in range(span.first, span.first + span.size):
        value, at = decode(text, at)
        yield number, functools.partial(as_object, value, f"element {number}")
        at = _skip(text, at, _SPACE + ",")
