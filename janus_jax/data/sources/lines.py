"""Files of lines, cut into spans that can be read apart, without ever holding more than one line."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from janus_jax.data.sources.base import InputFile, RejectedRecord, RejectReason
from janus_jax.data.sources.fields import LARGEST_FILE, json_object
from janus_jax.files import reading


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `stop` of a file, and the number of its first entry, counted from 1."""

    file: InputFile
    start: int
    stop: int
    first: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.file.label}:{self.first}"

    def open(self) -> BinaryIO:
        stream = self.file.path.open("rb")
        stream.seek(self.start)
        return stream


class Line(NamedTuple):
    """A line, by its number in the file; None for one that is too long to be read."""

    number: int
    content: bytes | None


def line_spans(file: InputFile, size: int) -> Iterator[Span]:
    """Spans of `size` lines each, but for the last."""
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


def read_lines(span: Span) -> Iterator[Line]:
    """The lines of a span that are not blank."""
    with span.open() as stream:
        for offset, (_, content) in zip(range(span.size), _lines(stream), strict=False):
            if content is None or content.strip():
                yield Line(span.first + offset, content)


def json_lines(span: Span) -> Iterator[tuple[int, Callable[[], Mapping[str, Any]]]]:
    """The lines of a span that are not blank, by number, each to be read as a json object when it is wanted.

    Reading one raises `RejectedRecord` where it is none, or is too long.
    """
    for line in read_lines(span):
        yield line.number, functools.partial(_json_object, line)


def _json_object(line: Line) -> Mapping[str, Any]:
    return json_object(whole(line), f"line {line.number}")


def whole(line: Line) -> bytes:
    """The line's content.

    Raises:
      RejectedRecord: it is too long.
    """
    if line.content is None:
        raise RejectedRecord(RejectReason.TOO_LONG, f"line {line.number} has more than {LARGEST_FILE} bytes.")
    return line.content


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Each line's length, and its content unless that is too long."""
    while content := stream.readline(LARGEST_FILE):
        length = len(content)
        complete = content.endswith(b"\n") or length < LARGEST_FILE
        while not complete:
            more = stream.readline(LARGEST_FILE)
            length += len(more)
            complete = more.endswith(b"\n") or len(more) < LARGEST_FILE
            content = b""
        yield length, content or None
