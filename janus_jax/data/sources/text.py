"""Plain text: json lines with one document each."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from janus_jax.data.records import Record
from janus_jax.data.sources.base import Entry, Part, SourceOptions, register_source
from janus_jax.data.sources.fields import field, text_of
from janus_jax.data.sources.lines import Span, json_lines, line_spans
from janus_jax.processing import Task

_FIELDS = ("text", "content")


@register_source("text", Task.TEXT, shard_records=65536)
def text(options: SourceOptions) -> Iterator[Part]:
    """`{"text": "..."}` a line; the field may be named."""
    for file in options.files(".jsonl"):
        for span in line_spans(file, options.shard_records):
            yield Part(span.name, functools.partial(_entries, span, options.text_field), span.size, file.bytes)


def _entries(span: Span, name: str | None) -> Iterator[Entry]:
    for number, read in json_lines(span):
        key = f"{span.file.label}:{number}"
        yield Entry(key, functools.partial(_record, key, read, name))


def _record(key: str, read: Callable[[], Mapping[str, Any]], name: str | None) -> Record:
    return Record(key, Task.TEXT, text=text_of(field(read(), name, _FIELDS)))
