"""Plain text: json lines with one document each."""

import functools
from collections.abc import Iterator

from janus_jax.data.records import Record
from janus_jax.data.sources.base import Entry, Options, Part, source
from janus_jax.data.sources.fields import field, json_object, text_of
from janus_jax.data.sources.lines import Line, Span, line_spans, read_lines, whole
from janus_jax.processing import Task

_FIELDS = ("text", "content")


@source("text", Task.TEXT, shard_records=65536)
def text(options: Options) -> Iterator[Part]:
    """`{"text": "..."}` a line; the field may be named."""
    for file in options.files(".jsonl"):
        for span in line_spans(file, options.shard_records):
            yield Part(span.name, functools.partial(_entries, span, options.text_field), span.size, file.bytes)


def _entries(span: Span, name: str | None) -> Iterator[Entry]:
    for line in read_lines(span):
        key = f"{span.file.label}:{line.number}"
        yield Entry(key, functools.partial(_record, key, line, name))


def _record(key: str, line: Line, name: str | None) -> Record:
    values = json_object(whole(line), f"line {line.number}")
    return Record(key, Task.TEXT, text=text_of(field(values, name, _FIELDS)))
