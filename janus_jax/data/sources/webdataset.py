"""WebDataset tars. Neighboring members with the same base name are a sample: an image and its text.

000017.jpg
000017.txt        the caption; or 000017.json with a caption, or with a conversation in LLaVA's format
"""

import contextlib
import functools
import itertools
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import Entry, InputFile, Part, SourceOptions, register_source, reject_damaged_file
from janus_jax.data.sources.conversations import conversation_record
from janus_jax.data.sources.fields import (
    TEXT_FIELDS,
    caption_record,
    check_size,
    get_field,
    get_text,
    json_object,
)
from janus_jax.processing import Task

_IMAGES = ("jpg", "jpeg", "png", "webp")
_TEXTS = ("txt", "json")


@register_source("webdataset", Task.GENERATION, Task.UNDERSTANDING)
def webdataset(options: SourceOptions) -> Iterator[Part]:
    """Reads tars. Each tar is one part, because it can only be read from its start."""
    for file in options.files(".tar", ".tar.gz", ".tgz"):
        yield Part(file.label, functools.partial(_entries, file, options), stamp=file.bytes)


@dataclass
class _Sample:
    """Contents of the members with one base name, by suffix."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    error: RejectedRecord | None = None


def _entries(file: InputFile, options: SourceOptions) -> Iterator[Entry]:
    for sample in _samples(file):
        key = f"{file.label}/{sample.key}"
        yield Entry(key, functools.partial(_record, key, sample, options))


def _samples(file: InputFile) -> Iterator[_Sample]:
    seen: set[str] = set()
    # Samples before damaged content are complete. The sample at the damage and those after it are lost.
    with reject_damaged_file(file.path), tarfile.open(file.path, "r|*", tarinfo=_StrictHeader) as tar:
        members = (member for member in tar if member.isfile())
        for key, group in itertools.groupby(members, lambda member: _split_name(member)[0]):
            sample = _Sample(key)
            if key in seen:
                message = f"{key} occurs twice in the tar; the members of a sample must be neighbors."
                sample.error = RejectedRecord(RejectReason.MALFORMED, message)
            seen.add(key)
            for member in group:
                _add_member(sample, tar, member)
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


def _add_member(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    suffix = _split_name(member)[1]
    if suffix not in (*_IMAGES, *_TEXTS) or sample.error:
        return
    try:
        check_size(member.size, member.name)
    except RejectedRecord as error:
        sample.error = error
        return
    with contextlib.closing(tar.extractfile(member)) as content:  # type: ignore[type-var]  # Not None for a file.
        sample.members[suffix] = content.read()  # type: ignore[union-attr]


def _record(key: str, sample: _Sample, options: SourceOptions) -> Record:
    if sample.error:
        raise sample.error
    found = ", ".join(sample.members) or "nothing known"
    images = [sample.members[suffix] for suffix in _IMAGES if suffix in sample.members]
    if not images:
        raise RejectedRecord(RejectReason.NO_IMAGE, f"it has none of {', '.join(_IMAGES)}, only {found}.")
    values = json_object(sample.members["json"], "its .json") if "json" in sample.members else {}
    if options.task is Task.UNDERSTANDING and ("conversations" in values or "messages" in values):
        return conversation_record(key, values, (images[0],), options)
    # The .txt takes precedence over the .json, unless --text_field names a field of the .json.
    if options.text_field is None and "txt" in sample.members:
        caption = get_text(sample.members["txt"])
    elif values:
        caption = get_text(get_field(values, options.text_field, TEXT_FIELDS))
    else:
        raise RejectedRecord(RejectReason.MISSING_FIELD, f"it has no caption in .txt or .json, only {found}.")
    return caption_record(key, caption, images[0], options)
