"""Conversations about images in the forms of LLaVA (arXiv 2304.08485), LLaMA-Factory, ms-swift and OpenAI's API.

[{"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                 {"from": "gpt", "value": "A cat."}]}]
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from janus_jax.data.records import Record
from janus_jax.data.sources.base import Part, SourceOptions, register_source
from janus_jax.data.sources.fields import ImageFolder, RawRecord, field_names
from janus_jax.data.sources.normalize import CHAT_FIELDS, CHAT_IMAGE_FIELDS, TURN_FIELDS, chat_record
from janus_jax.data.sources.tables import TABLE_ENDINGS, Columns, TableReader
from janus_jax.processing import Task


@register_source("conversations", Task.UNDERSTANDING, Task.TEXT, Task.INTERLEAVED, endings=TABLE_ENDINGS)
def conversations(options: SourceOptions) -> Iterator[Part]:
    """Reads tables of conversations."""
    named = (*field_names(options.text_field, TURN_FIELDS), *field_names(options.image_field, CHAT_IMAGE_FIELDS))
    reader = TableReader("conversations", Columns(frozenset((*CHAT_FIELDS, *named))), options)
    for file in options.files(*TABLE_ENDINGS):
        folder = ImageFolder.of(options, file.path)
        yield from reader.parts(file, functools.partial(_record, folder, options))


def _record(folder: ImageFolder, options: SourceOptions, key: str, values: Mapping[str, Any]) -> Record:
    return chat_record(folder, options, key, RawRecord(values))
