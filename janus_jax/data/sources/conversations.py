"""Instruction data as LLaVA (arXiv 2304.08485) published it: conversations in json, images in a folder.

[{"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                 {"from": "gpt", "value": "A cat."}]}]
"""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from janus_jax.data.records import Record
from janus_jax.data.sources.base import (
    Entry,
    InputFile,
    Part,
    RejectedRecord,
    RejectReason,
    SourceOptions,
    register_source,
)
from janus_jax.data.sources.fields import ImageFolder, field, image_of
from janus_jax.data.sources.lines import Span, json_lines, line_spans
from janus_jax.errors import JanusError
from janus_jax.files import read_text, reading
from janus_jax.processing import Message, Task
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

_THEIRS = "<image>"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
_SPACE = " \t\r\n"


@register_source("llava", Task.UNDERSTANDING, Task.TEXT)
def conversations(options: SourceOptions) -> Iterator[Part]:
    """A json array, or one object a line."""
    for file in options.files(".json", ".jsonl"):
        is_array = _is_array(file)
        spans, read = (array_spans, _elements) if is_array else (line_spans, json_lines)
        for span in spans(file, options.shard_records):
            yield Part(span.name, functools.partial(_entries, read, span, options), span.size, file.bytes)


def _is_array(file: InputFile) -> bool:
    with reading(file.path), file.path.open("rb") as stream:
        while block := stream.read(1 << 16):
            if start := block.removeprefix(b"\xef\xbb\xbf").lstrip():
                return start.startswith(b"[")
    return False


def array_spans(file: InputFile, size: int) -> Iterator[Span]:
    """Spans of `size` elements each of a json array, but for the last.

    The text is held, its objects are not: of LLaVA's largest file that is 1 GB in place of 6.

    Raises:
      JanusError: the file is no json array.
    """
    text = read_text(file.path, "fetch it again, or mend it")
    decode = json.JSONDecoder().raw_decode
    at = _skip(text, 0, "\ufeff" + _SPACE) + 1  # behind the bracket
    begun, start, count, first = at, len(text[:at].encode()), 0, 1
    with reading(file.path, "fetch it again, or mend it"):
        at = _skip(text, at)
        while text[at : at + 1] != "]":
            _, at = decode(text, at)
            at = _skip(text, at)
            if text[at : at + 1] not in (",", "]"):
                raise JanusError(f"{file.path} is damaged behind character {at}: neither , nor ] ends the array.")
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


def _skip(text: str, at: int, what: str = _SPACE) -> int:
    while at < len(text) and text[at] in what:
        at += 1
    return at


def _elements(span: Span) -> Iterator[tuple[int, Any]]:
    with span.open() as stream:
        text = stream.read(span.stop - span.start).decode("utf-8")
    decode, at = json.JSONDecoder().raw_decode, _skip(text, 0)
    for number in range(span.first, span.first + span.size):
        value, at = decode(text, at)
        yield number, functools.partial(_given, value)
        at = _skip(text, at, _SPACE + ",")


def _given(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RejectedRecord(RejectReason.MALFORMED, f"it is a {type(value).__name__} where an object is wanted.")
    return value


def _entries(read: Any, span: Span, options: SourceOptions) -> Iterator[Entry]:
    folder = ImageFolder.of(options, span.file.path)
    for number, values in read(span):
        key = f"{span.file.label}:{number}"
        yield Entry(key, functools.partial(_record, key, values, folder, options))


def _record(key: str, values: Any, folder: ImageFolder, options: SourceOptions) -> Record:
    sample = values()
    given = sample.get(options.image_field or "image")
    names = [] if given is None else given if isinstance(given, list) else [given]
    images = tuple(image_of(name, folder) for name in names)
    return conversation_record(key, sample, images, options)


def conversation_record(
    key: str, sample: Mapping[str, Any], images: tuple[bytes, ...], options: SourceOptions
) -> Record:
    """A sample's turns with its images, whose places are `<image>`, or else before the user's first words.

    A conversation without images is one in text, whatever the source's task.

    Raises:
      RejectedRecord: a turn is wrong, or there are images in a source of text.
    """
    turns = field(sample, options.text_field, ("conversations", "messages"))
    if not isinstance(turns, list) or not turns:
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, "its conversation is no list of turns.")
    messages = [_message(turn) for turn in turns]
    if images and options.task is Task.TEXT:
        raise RejectedRecord(RejectReason.IMAGE_COUNT, f"it has {len(images)} images, but its source is to teach text.")
    if images and not any(IMAGE_PLACEHOLDER in message["content"] for message in messages):
        first = next((message for message in messages if message["role"] == "user"), messages[0])
        first["content"] = f"{IMAGE_PLACEHOLDER}\n" * len(images) + first["content"]
    return Record(key, Task.UNDERSTANDING if images else Task.TEXT, messages=tuple(messages), images=images)


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise RejectedRecord(
            RejectReason.BAD_CONVERSATION, f"a turn is a {type(turn).__name__} where an object is wanted."
        )
    role = field(turn, None, ("from", "role"))
    content = field(turn, None, ("value", "content"))
    if not isinstance(role, str) or role not in _ROLES:
        raise RejectedRecord(
            RejectReason.BAD_CONVERSATION, f"a turn is {role!r:.40}'s; it must be one of {', '.join(_ROLES)}."
        )
    if not isinstance(content, str):
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, f"a turn's text is a {type(content).__name__}.")
    if IMAGE_PLACEHOLDER in content:
        raise RejectedRecord(
            RejectReason.SPECIAL_TOKEN, f"a turn spells {IMAGE_PLACEHOLDER}; images are marked with {_THEIRS}."
        )
    return {"role": _ROLES[role], "content": content.replace(_THEIRS, IMAGE_PLACEHOLDER)}
