"""Makes records from raw records in the forms of common datasets and tools. docs/data.md has a table of the forms.

A function takes the fields that it knows from a `RawRecord`. A field with content that the record cannot hold rejects
it; the names of other fields are reported (`Record.unused`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import SourceOptions
from janus_jax.data.sources.class_names import class_caption
from janus_jax.data.sources.fields import (
    ImageFolder,
    RawRecord,
    as_object,
    caption_record,
    field_names,
    get_image,
    get_text,
    get_texts,
    is_blank,
)
from janus_jax.processing import Message, Task
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

TEXT_FIELDS = ("text", "content")
CLASS_FIELDS = ("label", "class")
CAPTION_FIELDS = ("caption", "captions", "text", "input_prompt", "prompt", *CLASS_FIELDS)
IMAGE_FIELDS = ("image", "images", "image_path", "file_name", "path", "jpg", "output_image")

EDIT_FIELDS = ("input_prompt", "instruction", "edit_prompt", "prompt", "caption", "text")
EDIT_INPUT_FIELDS = ("input_image", "input_images", "source_image", "source_img", "src_img", "original_image")
EDIT_OUTPUT_FIELDS = ("output_image", "edited_image", "edited_img", "target_image", "target_img")

TURN_FIELDS = ("conversations", "messages")
CHAT_IMAGE_FIELDS = ("images", "image", "image_path", "image_paths")
_SYSTEM = ("system", "system_prompt")
_QUERY = ("query", "instruction", "question", "prompt")
_MORE_QUERY = ("input",)
_RESPONSE = ("response", "output", "answer", "completion")
_HISTORY = ("history",)
_UNSUPPORTED = ("videos", "video", "audios", "audio", "tools")
"""Fields with content of a conversation that a record cannot hold."""

CHAT_FIELDS = (
    *TURN_FIELDS,
    *CHAT_IMAGE_FIELDS,
    *_SYSTEM,
    *_QUERY,
    *_MORE_QUERY,
    *_RESPONSE,
    *_HISTORY,
    *_UNSUPPORTED,
)

_IMAGE_MARK = "<image>"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}


def text_record(options: SourceOptions, key: str, values: Mapping[str, Any]) -> Record:
    """Returns the record of a document."""
    raw = RawRecord(values)
    text = get_text(raw.get(field_names(options.text_field, TEXT_FIELDS), _hint(raw, "conversations")))
    return Record(key, Task.TEXT, text=text, unused=raw.unused)


def image_caption_record(folder: ImageFolder, options: SourceOptions, key: str, values: Mapping[str, Any]) -> Record:
    """Returns the record of an image with one or more captions.

    Raises:
      RejectedRecord: A field is missing or invalid, or the raw record is an edit.
    """
    raw = RawRecord(values)
    if raw.has(EDIT_INPUT_FIELDS[:2]):
        message = f"it has an input image, which --source captions does not use{_hint(raw, 'edits')}."
        raise RejectedRecord(RejectReason.WRONG_TASK, message)
    captions = get_captions(raw, options)
    image = get_image(_single(raw.get(field_names(options.image_field, IMAGE_FIELDS))), folder)
    return caption_record(key, captions, image, options, raw.unused)


def edit_record(folder: ImageFolder | None, options: SourceOptions, key: str, values: Mapping[str, Any]) -> Record:
    """Returns the record of an edit: one or more input images, an instruction, and the edited image.

    `folder` is the folder of image paths; None rejects paths.

    Raises:
      RejectedRecord: A field is missing or invalid, or there is no input image.
    """
    raw = RawRecord(values)
    inputs = _as_list(raw.find(EDIT_INPUT_FIELDS))
    if not inputs:
        message = (
            f"it has no {EDIT_INPUT_FIELDS[0]}; --source captions --task generation reads images without input images."
        )
        raise RejectedRecord(RejectReason.WRONG_TASK, message)
    instruction = get_text(raw.get(field_names(options.text_field, EDIT_FIELDS)))
    target = _single(raw.get(field_names(options.image_field, EDIT_OUTPUT_FIELDS)))
    images = tuple(get_image(value, folder) for value in (*inputs, target))
    return Record(key, Task.EDITING, text=instruction, images=images, unused=raw.unused)


def get_captions(raw: RawRecord, options: SourceOptions) -> tuple[str, ...]:
    """Returns the captions of a raw record: one or more texts, or the caption of its class.

    Raises:
      RejectedRecord: It has no caption.
    """
    names = field_names(options.text_field, CAPTION_FIELDS)
    label = raw.find([name for name in names if name in CLASS_FIELDS]) if not raw.has(_without_classes(names)) else None
    if isinstance(label, int | str) and str(label).strip():
        return (class_caption(str(label), options.class_names),)
    return get_texts(raw.get(names, _hint(raw, "conversations")))


def _without_classes(names: Sequence[str]) -> list[str]:
    return [name for name in names if name not in CLASS_FIELDS]


def _single(value: Any) -> Any:
    """Returns the only image of a field that may be a list."""
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise RejectedRecord(RejectReason.IMAGE_COUNT, f"it has {len(value)} images; a caption needs one.")
    return value[0]


def chat_record(
    folder: ImageFolder | None,
    options: SourceOptions,
    key: str,
    raw: RawRecord,
    images: Sequence[bytes] | None = None,
) -> Record:
    """Returns the record of a conversation and its images.

    `<image>` in a text, or an image part without an image, marks the position of the next image. Without marks, the
    images come before the text of the first user turn. The task is interleaved if the options ask for it; otherwise it
    is text if there are no images.

    Args:
      folder: Folder of image paths; None rejects paths.
      options: Options of the source.
      key: Key of the record.
      raw: The raw record.
      images: Images of the record, instead of those in its fields.

    Raises:
      RejectedRecord: A turn is invalid, a field has content that a record cannot hold, or there are images although the
        options ask for the task text.
    """
    unsupported = [name for name in _UNSUPPORTED if not is_blank(value := raw.find((name,))) and value != "[]"]
    if unsupported:
        message = f"its field {unsupported[0]} has content, which a record cannot hold; remove the field or the record."
        raise RejectedRecord(RejectReason.UNSUPPORTED_FIELD, message)
    listed = _chat_images(raw, options)
    turns = _turns(raw, options)
    marks = _ImageMarks(listed if images is None else list(images))
    messages = [_message(turn, marks) for turn in turns]
    _add_system(messages, raw.find(_SYSTEM))
    if marks.rest and not marks.found:
        first = next((message for message in messages if message["role"] == "user"), messages[0])
        first["content"] = _join(first["content"], leading=len(marks.rest))
        marks.images += marks.rest
    elif marks.rest or marks.missing:
        message = f"it has {len(marks.images) + len(marks.rest)} images and {marks.found} marks of images."
        raise RejectedRecord(RejectReason.IMAGE_COUNT, message)
    encoded = tuple(get_image(value, folder) for value in marks.images)
    if encoded and options.task is Task.TEXT:
        raise RejectedRecord(RejectReason.IMAGE_COUNT, f"it has {len(encoded)} images, but the task is text.")
    task = Task.UNDERSTANDING if encoded else Task.TEXT
    if options.task is Task.INTERLEAVED:
        task = Task.INTERLEAVED
    return Record(key, task, messages=tuple(messages), images=encoded, unused=(*raw.unused, *marks.unused))


def _chat_images(raw: RawRecord, options: SourceOptions) -> list[Any]:
    names = [name for name in field_names(options.image_field, CHAT_IMAGE_FIELDS) if raw.has((name,))]
    lists = [_as_list(raw.find((name,))) for name in names]
    if any(values and values != lists[0] for values in lists[1:]) and lists[0]:
        message = f"it has different images in {' and '.join(names)}; select one with --image_field."
        raise RejectedRecord(RejectReason.IMAGE_COUNT, message)
    return next((values for values in lists if values), [])


def _turns(raw: RawRecord, options: SourceOptions) -> list[Any]:
    """Returns the turns of a conversation: a list of turns, or the pairs of a history and a query with its response."""
    names = field_names(options.text_field, TURN_FIELDS)
    if not raw.has(names) and raw.has(_QUERY):
        pairs = [*(raw.find(_HISTORY) or ()), (_query(raw), raw.find(_RESPONSE))]
        return [turn for pair in pairs for turn in _pair(pair)]
    if extra := [name for name in (*_HISTORY, "query") if not is_blank(raw.find((name,)))]:
        message = f"it has turns in {extra[0]} and in a list of turns; keep one of them."
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, message)
    turns = raw.get(names, _hint(raw, "captions"))
    if not isinstance(turns, list) or not turns:
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, "its conversation is not a list of turns.")
    return turns


def _query(raw: RawRecord) -> Any:
    query, more = raw.find(_QUERY), raw.find(_MORE_QUERY)
    if isinstance(query, str) and isinstance(more, str) and more.strip():
        return f"{query}\n{more}"
    return query


def _pair(pair: Any) -> list[Any]:
    """Returns the turns of an element of a history: a query and a response, or a turn."""
    if isinstance(pair, Mapping):
        return [pair]
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, "an element of its history is not a query and a response.")
    query, response = pair
    turns = [{"role": "user", "content": query}, {"role": "assistant", "content": response}]
    return turns if response is not None else turns[:1]


@dataclass
class _ImageMarks:
    """Assigns the listed images to the image marks of a conversation, in the order of the text.

    Attributes:
      rest: Listed images that have no mark yet.
      images: Images at the marks so far.
      missing: Number of marks for which no image was left.
      unused: Names of the fields of turns and parts that were not used.
    """

    rest: list[Any]
    images: list[Any] = field(default_factory=list)
    missing: int = 0
    unused: dict[str, None] = field(default_factory=dict)

    @property
    def found(self) -> int:
        return len(self.images) + self.missing

    def add(self, value: Any = None) -> None:
        """Adds a mark, with its image if the mark names one."""
        if value is not None:
            self.images.append(value)
        elif self.rest:
            self.images.append(self.rest.pop(0))
        else:
            self.missing += 1


def _message(turn: Any, marks: _ImageMarks) -> Message:
    if not isinstance(turn, Mapping):
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, f"a turn is a {type(turn).__name__}, not an object.")
    raw = RawRecord(turn)
    role = raw.get(("from", "role"))
    if not is_blank(raw.find(("tool_calls",))):
        message = "a turn has tool_calls, which a record cannot hold; remove the record."
        raise RejectedRecord(RejectReason.UNSUPPORTED_FIELD, message)
    content = raw.get(("value", "content"))
    if not isinstance(role, str) or role not in _ROLES:
        message = f"a turn has the role {role!r:.40}; it must be one of {', '.join(_ROLES)}."
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, message)
    marks.unused.update(dict.fromkeys(f"turn.{name}" for name in raw.unused))
    if isinstance(content, list):
        return {"role": _ROLES[role], "content": _parts_text(content, marks)}
    if not isinstance(content, str):
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, f"a turn's text is a {type(content).__name__}.")
    return {"role": _ROLES[role], "content": _marked_text(content, marks)}


def _marked_text(text: str, marks: _ImageMarks) -> str:
    if IMAGE_PLACEHOLDER in text:
        message = f"a turn contains {IMAGE_PLACEHOLDER}; mark images with {_IMAGE_MARK}."
        raise RejectedRecord(RejectReason.SPECIAL_TOKEN, message)
    for _ in range(text.count(_IMAGE_MARK)):
        marks.add()
    return text.replace(_IMAGE_MARK, IMAGE_PLACEHOLDER)


def _parts_text(parts: Sequence[Any], marks: _ImageMarks) -> str:
    """Returns the text of a list of parts as in OpenAI's API, with a placeholder for each image."""
    text, leading = "", 0
    for part in parts:
        raw = RawRecord({"type": "text", "text": part} if isinstance(part, str) else as_object(part, "a part"))
        kind = raw.find(("type",))
        if kind in ("text", "input_text", "output_text") and isinstance(content := raw.find(("text",)), str):
            text += _marked_text(content, marks)
        elif kind in ("image", "image_url", "input_image"):
            marks.add(_part_image(raw))
            leading += not text
            text += IMAGE_PLACEHOLDER if text else ""
        else:
            message = f"a part has the type {kind!r:.40}; it must be text with a text, image or image_url."
            raise RejectedRecord(RejectReason.BAD_CONVERSATION, message)
        marks.unused.update(dict.fromkeys(f"part.{name}" for name in raw.unused))
    return _join(text, leading)


def _part_image(part: RawRecord) -> Any:
    """Returns the image that a part names; None if it marks the next listed image."""
    for name in ("base64", "bytes"):
        if (value := part.find((name,))) is not None:
            return {name: value}
    return part.find(("image", "image_url", "url", "path"))


def _join(text: str, leading: int) -> str:
    """Returns a text that starts with `leading` image placeholders, one per line."""
    placeholders = "\n".join([IMAGE_PLACEHOLDER] * leading)
    return f"{placeholders}\n{text}" if leading and text and not text.startswith("\n") else placeholders + text


def _add_system(messages: list[Message], system: Any) -> None:
    if is_blank(system):
        return
    text = get_text(system)
    if messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": text})
    elif messages[0]["content"].strip() != text:
        message = "its system differs from the system turn of its conversation; keep one of them."
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, message)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _hint(raw: RawRecord, source: str) -> str:
    """Returns the end of a message that names the source for a raw record of another form."""
    names = {
        "conversations": (*TURN_FIELDS, "query"),
        "captions": ("caption", "captions"),
        "edits": EDIT_INPUT_FIELDS,
    }[source]
    return f"; --source {source} reads these fields" if raw.has(names) else ""
