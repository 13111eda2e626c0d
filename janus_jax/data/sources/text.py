"""Text documents in JSON lines."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from janus_jax.data.records import Record
from janus_jax.data.sources.base import Part, SourceOptions, register_source
from janus_jax.data.sources.fields import get_field, get_text
from janus_jax.data.sources.rows import json_lines, line_spans
from janus_jax.processing import Task


@register_source("text", Task.TEXT, shard_records=65536)
def text(options: SourceOptions) -> Iterator[Part]:
    """Reads one document per line: `{"text": "..."}`. `text_field` selects another field."""
    for file in options.files(".jsonl"):
        for span in line_spans(file, options.shard_records):
            yield span.part(json_lines, functools.partial(_record, options.text_field))


def _record(field: str | None, key: str, values: Mapping[str, Any]) -> Record:
    return Record(key, Task.TEXT, text=get_text(get_field(values, field, ("text", "content"))))
