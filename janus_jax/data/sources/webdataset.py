"""WebDataset tars: neighbouring members of one basename are a sample, its picture and its text.

000017.jpg
000017.txt        the caption; or 000017.json with a caption, or with a conversation as LLaVA's
"""

import contextlib
import functools
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from janus_jax.data.records import Record
from janus_jax.data.sources.base import (
    Entry,
    InputFile,
    Part,
    RejectedRecord,
    RejectReason,
    SourceOptions,
    register_source,
    reject_damaged_file,
)
from janus_jax.data.sources.conversations import conversation_record
from janus_jax.data.sources.fields import LARGEST_FILE, TEXT_FIELDS, caption_record, json_object, text_of
from janus_jax.data.sources.fields import field as value_of
from janus_jax.processing import Task

_IMAGES = ("jpg", "jpeg", "png", "webp")
_TEXTS = ("txt", "json")


@register_source("webdataset", Task.GENERATION, Task.UNDERSTANDING)
def webdataset(options: SourceOptions) -> Iterator[Part]:
    """A tar is read from end to end, and so is a part."""
    for file in options.files(".tar", ".tar.gz", ".tgz"):
        yield Part(file.label, functools.partial(_entries, file, options), stamp=file.bytes)


@dataclass
class _Sample:
    """The members of one basename, as far as they are read."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    refusal: RejectedRecord | None = None


def _entries(file: InputFile, options: SourceOptions) -> Iterator[Entry]:
    for sample in _samples(file):
        yield Entry(f"{file.label}/{sample.key}", functools.partial(_record, file, sample, options))


def _samples(file: InputFile) -> Iterator[_Sample]:
    sample: _Sample | None = None
    seen: set[str] = set()
    # What is read before a break is whole; the sample at the break is lost with the rest.
    with reject_damaged_file(file.path), tarfile.open(file.path, "r|*", tarinfo=_Header) as tar:
        for member in tar:
            if not member.isfile():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample = _Sample(key, refusal=_twice(key) if key in seen else None)
                seen.add(key)
            _add(sample, ending.lower(), tar, member)
    if sample is not None:
        yield sample


class _Header(tarfile.TarInfo):
    """A header that must be whole: tarfile takes a damaged or a missing one for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no header where one is due: {error}") from error


def _twice(key: str) -> RejectedRecord:
    return RejectedRecord(
        RejectReason.MALFORMED, f"{key} comes twice in the tar; members of a sample must be neighbours."
    )


def _add(sample: _Sample, ending: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    if ending not in (*_IMAGES, *_TEXTS) or sample.refusal:
        return
    if member.size > LARGEST_FILE:
        sample.refusal = RejectedRecord(
            RejectReason.IMAGE_TOO_LARGE, f"{member.name} has {member.size} bytes; at most {LARGEST_FILE} are read."
        )
        return
    with contextlib.closing(tar.extractfile(member)) as content:  # type: ignore[type-var]  # a file's is not None
        sample.members[ending] = content.read()  # type: ignore[union-attr]


def _record(file: InputFile, sample: _Sample, options: SourceOptions) -> Record:
    if sample.refusal:
        raise sample.refusal
    key = f"{file.label}/{sample.key}"
    there = ", ".join(sample.members) or "nothing known"
    images = [sample.members[ending] for ending in _IMAGES if ending in sample.members]
    if not images:
        raise RejectedRecord(RejectReason.NO_IMAGE, f"it has none of {', '.join(_IMAGES)}, only {there}.")
    values = json_object(sample.members["json"], "its .json") if "json" in sample.members else {}
    if options.task is Task.UNDERSTANDING and ("conversations" in values or "messages" in values):
        return conversation_record(key, values, (images[0],), options)
    # A text of its own comes before one among other data, unless that is asked for.
    if options.text_field is None and "txt" in sample.members:
        caption = text_of(sample.members["txt"])
    elif values:
        caption = text_of(value_of(values, options.text_field, TEXT_FIELDS))
    else:
        raise RejectedRecord(RejectReason.MISSING_FIELD, f"it has no caption in .txt or .json, only {there}.")
    return caption_record(key, caption, images[0], options)
