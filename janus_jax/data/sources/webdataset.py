"""WebDataset tars. Neighboring members with the same base name are a sample: an image and its text.

000017.jpg        the image; or an ending such as input.jpg
000017.txt        the caption; or 000017.json with a caption or a conversation, or 000017.cls with a class
"""

import dataclasses
import functools
from collections.abc import Iterator

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import Entry, Part, SourceOptions, register_source
from janus_jax.data.sources.class_names import class_caption
from janus_jax.data.sources.fields import RawRecord, caption_record, get_text, json_object
from janus_jax.data.sources.input_files import InputFile, wrong_ending
from janus_jax.data.sources.normalize import CAPTION_FIELDS, TURN_FIELDS, chat_record, get_captions
from janus_jax.data.sources.tars import IMAGE_ENDINGS, TAR_ENDINGS, TEXT_ENDINGS, Sample, is_tar, last_part, tar_samples
from janus_jax.processing import Task


@register_source("webdataset", Task.GENERATION, Task.UNDERSTANDING, endings=TAR_ENDINGS)
def webdataset(options: SourceOptions) -> Iterator[Part]:
    """Reads tars. Each tar is one part, because it can only be read from its start."""
    for file in options.files(*TAR_ENDINGS):
        if not is_tar(file):
            raise wrong_ending(file.path, "webdataset", TAR_ENDINGS)
        yield Part(file.label, functools.partial(_entries, file, options), stamp=file.bytes)


def _entries(file: InputFile, options: SourceOptions) -> Iterator[Entry]:
    for sample in tar_samples(file, options):
        key = f"{file.label}/{sample.key}"
        yield Entry(key, functools.partial(_record, key, sample, options))


def _record(key: str, sample: Sample, options: SourceOptions) -> Record:
    members = RawRecord(sample.contents)
    found = ", ".join(sample.members)
    image_name = _member(sample, options.image_field, IMAGE_ENDINGS, "--image_field")
    if image_name is None:
        kinds = options.image_field or ", ".join(IMAGE_ENDINGS)
        raise RejectedRecord(RejectReason.NO_IMAGE, f"it has no image ({kinds}), only {found}.")
    image: bytes = members.find((image_name,))
    json_name = _member(sample, None, ("json",), "--text_field")
    raw = RawRecord(json_object(members.find((json_name,)), f"its .{json_name}") if json_name else {})
    if options.task is Task.UNDERSTANDING and raw.has(TURN_FIELDS):
        record = chat_record(None, options, key, raw, (image,))
    else:
        captions = _captions(sample, members, raw, options)
        record = caption_record(key, captions, image, options, raw.unused)
    unread = {ending for ending, content in sample.members.items() if content is None} | set(members.unused)
    return dataclasses.replace(record, unused=(*record.unused, *(f".{ending}" for ending in sorted(unread))))


def _member(sample: Sample, name: str | None, kinds: tuple[str, ...], flag: str) -> str | None:
    """Returns the ending of the member to use: `name` if given, otherwise the first of `kinds` that the sample has.

    An ending such as `input.jpg` is used if the sample has no plain `jpg`.

    Raises:
      RejectedRecord: The sample has several members such as `input.jpg` and `mask.jpg`.
    """
    if name is not None:
        return name if name in sample.members else None
    for kind in kinds:
        if kind in sample.members:
            return kind
    compound = [ending for ending in sample.members if last_part(ending) in kinds]
    if len(compound) > 1:
        message = f"it has {', '.join(compound)}; select one with {flag}."
        raise RejectedRecord(
            RejectReason.IMAGE_COUNT if kinds is IMAGE_ENDINGS else RejectReason.MISSING_FIELD, message
        )
    return compound[0] if compound else None


def _captions(sample: Sample, members: RawRecord, raw: RawRecord, options: SourceOptions) -> tuple[str, ...]:
    """Returns the captions of the member or JSON field `text_field`, or of the text, JSON or class member."""
    name, flag = options.text_field, "--text_field"
    if name is None:
        ending = _member(sample, None, ("txt", "caption", "cap", "text"), flag)
        if ending is None and not raw.has(CAPTION_FIELDS):
            ending = _member(sample, None, ("cls",), flag)
    else:
        ending = name if name in sample.members else None
    if ending is not None:
        content = get_text(members.find((ending,)))
        return (class_caption(content, options.class_names) if last_part(ending) == "cls" else content,)
    if raw.has(CAPTION_FIELDS if name is None else (name,)):
        return get_captions(raw, options)
    found = ", ".join((*sample.members, *(f"field {field} of the json" for field in raw.unused)))
    message = f"it has no caption ({name or ', '.join(TEXT_ENDINGS)}), only {found:.300}."
    raise RejectedRecord(RejectReason.MISSING_FIELD, message)
