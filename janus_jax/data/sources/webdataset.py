"""WebDataset tars. Neighboring members with the same base name are a sample: an image and its text.

000017.jpg        the image; or an ending such as input.jpg
000017.txt        the caption; or 000017.json with a caption or a conversation, or 000017.cls with a class
"""

import contextlib
import dataclasses
import functools
import itertools
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import Entry, Part, SourceOptions, register_source, reject_damaged_file
from janus_jax.data.sources.class_names import class_caption
from janus_jax.data.sources.fields import RawRecord, caption_record, check_size, get_text, json_object
from janus_jax.data.sources.input_files import InputFile, is_skipped, wrong_ending
from janus_jax.data.sources.normalize import CAPTION_FIELDS, TURN_FIELDS, chat_record, get_captions
from janus_jax.processing import Task

_IMAGES = ("jpg", "jpeg", "png", "webp", "img", "bmp", "gif", "tif", "tiff")
_TEXTS = ("txt", "caption", "cap", "text", "json", "cls")
_ENDINGS = (".tar", ".tar.gz", ".tgz")


@register_source("webdataset", Task.GENERATION, Task.UNDERSTANDING, endings=_ENDINGS)
def webdataset(options: SourceOptions) -> Iterator[Part]:
    """Reads tars. Each tar is one part, because it can only be read from its start."""
    for file in options.files(*_ENDINGS):
        if not file.path.name.lower().endswith(_ENDINGS) and not tarfile.is_tarfile(file.path):
            raise wrong_ending(file.path, "webdataset", _ENDINGS)
        yield Part(file.label, functools.partial(_entries, file, options), stamp=file.bytes)


@dataclass
class _Sample:
    """Members with one base name, by ending. The content is None if the source does not use the ending."""

    key: str
    members: dict[str, bytes | None] = field(default_factory=dict)
    error: RejectedRecord | None = None


def _entries(file: InputFile, options: SourceOptions) -> Iterator[Entry]:
    for sample in _samples(file, options):
        key = f"{file.label}/{sample.key}"
        yield Entry(key, functools.partial(_record, key, sample, options))


def _samples(file: InputFile, options: SourceOptions) -> Iterator[_Sample]:
    seen: set[str] = set()
    # Samples before damaged content are complete. The sample at the damage and those after it are lost.
    with reject_damaged_file(file.path), tarfile.open(file.path, "r|*", tarinfo=_StrictHeader) as tar:
        members = (member for member in tar if member.isfile() and not is_skipped(member.name.removeprefix("./")))
        for key, group in itertools.groupby(members, lambda member: _split_name(member)[0]):
            sample = _Sample(key)
            if key in seen:
                message = f"{key} occurs twice in the tar; the members of a sample must be neighbors."
                sample.error = RejectedRecord(RejectReason.MALFORMED, message)
            seen.add(key)
            for member in group:
                _add_member(sample, tar, member, options)
            yield sample


def _split_name(member: tarfile.TarInfo) -> tuple[str, str]:
    """Returns the base name with its folder, and the suffix."""
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


class _StrictHeader(tarfile.TarInfo):
    """Header that raises if it is damaged or missing. `TarInfo` would treat it as the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"missing header: {error}") from error


def _add_member(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, options: SourceOptions) -> None:
    ending = _split_name(member)[1]
    sample.members[ending] = None
    wanted = {options.image_field, options.text_field}
    if sample.error or not (ending in wanted or _last(ending) in (*_IMAGES, *_TEXTS)):
        return
    try:
        check_size(member.size, member.name)
    except RejectedRecord as error:
        sample.error = error
        return
    with contextlib.closing(tar.extractfile(member)) as content:  # type: ignore[type-var]  # Not None for a file.
        sample.members[ending] = content.read()  # type: ignore[union-attr]


def _last(ending: str) -> str:
    """Returns the last part of an ending such as `input.jpg`."""
    return ending.rpartition(".")[2]


def _record(key: str, sample: _Sample, options: SourceOptions) -> Record:
    if sample.error:
        raise sample.error
    members = RawRecord({ending: content for ending, content in sample.members.items() if content is not None})
    found = ", ".join(sample.members)
    image_name = _member(sample, options.image_field, _IMAGES, "--image_field")
    if image_name is None:
        kinds = options.image_field or ", ".join(_IMAGES)
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


def _member(sample: _Sample, name: str | None, kinds: tuple[str, ...], flag: str) -> str | None:
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
    compound = [ending for ending in sample.members if _last(ending) in kinds]
    if len(compound) > 1:
        message = f"it has {', '.join(compound)}; select one with {flag}."
        raise RejectedRecord(RejectReason.IMAGE_COUNT if kinds is _IMAGES else RejectReason.MISSING_FIELD, message)
    return compound[0] if compound else None


def _captions(sample: _Sample, members: RawRecord, raw: RawRecord, options: SourceOptions) -> tuple[str, ...]:
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
        return (class_caption(content, options.class_names) if _last(ending) == "cls" else content,)
    if raw.has(CAPTION_FIELDS if name is None else (name,)):
        return get_captions(raw, options)
    found = ", ".join((*sample.members, *(f"field {field} of the json" for field in raw.unused)))
    message = f"it has no caption ({name or ', '.join(_TEXTS)}), only {found:.300}."
    raise RejectedRecord(RejectReason.MISSING_FIELD, message)
