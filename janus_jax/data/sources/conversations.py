"""Instruction data in the format of LLaVA (arXiv 2304.08485): conversations in JSON, images in a folder.

[{"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                 {"from": "gpt", "value": "A cat."}]}]
"""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import InputFile, Part, SourceOptions, register_source
from janus_jax.data.sources.fields import ImageFolder, as_object, get_field, get_image
from janus_jax.data.sources.rows import Row, Span, json_lines, line_spans
from janus_jax.errors import JanusError
from janus_jax.files import read_text, reading
from janus_jax.processing import Message, Task
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

_LLAVA_PLACEHOLDER = "<image>"
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
    """Reads conversations from a JSON array, or from lines with one object each."""
    for file in options.files(".json", ".jsonl"):
        make_record = functools.partial(_record, ImageFolder.of(options, file.path), options)
        spans, read = (array_spans, _array_rows) if _is_array(file) else (line_spans, json_lines)
        for span in spans(file, options.shard_records):
            yield span.part(read, make_record)


def _is_array(file: InputFile) -> bool:
    with reading(file.path), file.path.open("rb") as stream:
        while block := stream.read(1 << 16):
            if start := block.removeprefix(b"\xef\xbb\xbf").lstrip():
                return start.startswith(b"[")
    return False


def array_spans(file: InputFile, size: int) -> Iterator[Span]:
    """Yields spans of `size` elements of a JSON array.

    Only the text is held in memory, not the objects: 1 GB instead of 6 GB for LLaVA's largest file.

    Raises:
      JanusError: The file is not a JSON array.
    """
    remedy = "fetch it again, or fix it"
    text = read_text(file.path, remedy)
    decode = json.JSONDecoder().raw_decode
    at = _skip(text, 0, "\ufeff" + _SPACE) + 1  # After the bracket.
    begun, start, count, first = at, len(text[:at].encode()), 0, 1
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


def _array_rows(span: Span) -> Iterator[tuple[int, Row]]:
    with span.open() as stream:
        text = stream.read(span.stop - span.start).decode("utf-8")
    decode, at = json.JSONDecoder().raw_decode, _skip(text, 0)
    for number in range(span.first, span.first + span.size):
        value, at = decode(text, at)
        yield number, functools.partial(as_object, value, f"element {number}")
        at = _skip(text, at, _SPACE + ",")


def _record(folder: ImageFolder, options: SourceOptions, key: str, values: Mapping[str, Any]) -> Record:
    paths = values.get(options.image_field or "image")
    if not isinstance(paths, list):
        paths = [] if paths is None else [paths]
    return conversation_record(key, values, tuple(get_image(path, folder) for path in paths), options)


def conversation_record(
    key: str, values: Mapping[str, Any], images: tuple[bytes, ...], options: SourceOptions
) -> Record:
    """Returns a record of a conversation and its images.

    `<image>` marks the position of each image. Without marks, the images come before the text of the first user turn.
    The task is text if there are no images.

    Raises:
      RejectedRecord: A turn is invalid, or there are images although the options ask for the task text.
    """
    turns = get_field(values, options.text_field, ("conversations", "messages"))
    if not isinstance(turns, list) or not turns:
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, "its conversation is not a list of turns.")
    messages = [_message(turn) for turn in turns]
    if images and options.task is Task.TEXT:
        raise RejectedRecord(RejectReason.IMAGE_COUNT, f"it has {len(images)} images, but the task is text.")
    if images and not any(IMAGE_PLACEHOLDER in message["content"] for message in messages):
        first = next((message for message in messages if message["role"] == "user"), messages[0])
        first["content"] = f"{IMAGE_PLACEHOLDER}\n" * len(images) + first["content"]
    return Record(key, Task.UNDERSTANDING if images else Task.TEXT, messages=tuple(messages), images=images)


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, f"a turn is a {type(turn).__name__}, not an object.")
    role = get_field(turn, None, ("from", "role"))
    content = get_field(turn, None, ("value", "content"))
    if not isinstance(role, str) or role not in _ROLES:
        message = f"a turn has the role {role!r:.40}; it must be one of {', '.join(_ROLES)}."
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, message)
    if not isinstance(content, str):
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, f"a turn's text is a {type(content).__name__}.")
    if IMAGE_PLACEHOLDER in content:
        message = f"a turn contains {IMAGE_PLACEHOLDER}; mark images with {_LLAVA_PLACEHOLDER}."
        raise RejectedRecord(RejectReason.SPECIAL_TOKEN, message)
    return {"role": _ROLES[role], "content": content.replace(_LLAVA_PLACEHOLDER, IMAGE_PLACEHOLDER)}
