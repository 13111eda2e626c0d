"""Edits of images in tables and WebDataset tars.

{"input_image": ["a.jpg"], "input_prompt": "Make it blue.", "output_image": "b.jpg"}

000017.input.jpg          the source image; input_0.jpg, input_1.jpg, ... if there are several
000017.instruction.txt    the instruction; or a field of 000017.json
000017.output.jpg         the edited image
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import Entry, Part, SourceOptions, register_source
from janus_jax.data.sources.fields import ImageFolder, field_names, json_object
from janus_jax.data.sources.input_files import InputFile
from janus_jax.data.sources.normalize import EDIT_FIELDS, EDIT_INPUT_FIELDS, EDIT_OUTPUT_FIELDS, edit_record
from janus_jax.data.sources.tables import TABLE_ENDINGS, Columns, TableReader
from janus_jax.data.sources.tars import IMAGE_ENDINGS, TAR_ENDINGS, Sample, is_tar, tar_samples
from janus_jax.processing import Task

_IMAGE = rf"(?:_?(?:image|img))?[_.-]?\d*\.(?:{'|'.join(IMAGE_ENDINGS)})"
_INPUT = re.compile(rf"(?:input|source|src|original){_IMAGE}")
_OUTPUT = re.compile(rf"(?:output|edited|target){_IMAGE}")
_INSTRUCTION = re.compile(r"(?:(?:instruction|(?:input_|edit_)?prompt)\.)?(?:txt|text)")


@register_source("edits", Task.EDITING, endings=(*TABLE_ENDINGS, *TAR_ENDINGS))
def edits(options: SourceOptions) -> Iterator[Part]:
    """Reads tables and tars of source images, an instruction, and the edited image."""
    texts = field_names(options.text_field, EDIT_FIELDS)
    images = field_names(options.image_field, EDIT_OUTPUT_FIELDS)
    required = (("--text_field", options.text_field, texts), ("--image_field", options.image_field, images))
    reader = TableReader("edits", Columns(frozenset((*texts, *images, *EDIT_INPUT_FIELDS)), required), options)
    for file in options.files(*TABLE_ENDINGS, *TAR_ENDINGS):
        if is_tar(file):
            yield Part(file.label, functools.partial(_tar_entries, file, options), stamp=file.bytes)
        else:
            folder = ImageFolder.of(options, file.path)
            yield from reader.parts(file, functools.partial(edit_record, folder, options))


def _tar_entries(file: InputFile, options: SourceOptions) -> Iterator[Entry]:
    for sample in tar_samples(file, options):
        key = f"{file.label}/{sample.key}"
        yield Entry(key, functools.partial(_tar_record, key, sample, options))


def _tar_record(key: str, sample: Sample, options: SourceOptions) -> Record:
    contents = sample.contents
    values: dict[str, Any] = dict(json_object(contents["json"], "its .json")) if "json" in contents else {}
    inputs = _matching(contents, None, _INPUT)
    outputs = _matching(contents, options.image_field, _OUTPUT)
    texts = _matching(contents, options.text_field, _INSTRUCTION)
    for endings, flag in ((outputs, "--image_field"), (texts, "--text_field")):
        if len(endings) > 1:
            message = f"it has {', '.join(endings)}; select one with {flag}."
            reason = RejectReason.IMAGE_COUNT if endings is outputs else RejectReason.MISSING_FIELD
            raise RejectedRecord(reason, message)
    for endings, name in ((inputs, "input.jpg"), (outputs, options.image_field or "output.jpg")):
        if not endings:
            raise RejectedRecord(RejectReason.NO_IMAGE, f"it has no {name}, only {', '.join(sample.members):.200}.")
    values[EDIT_INPUT_FIELDS[0]] = [contents[ending] for ending in inputs if ending not in outputs]
    values[field_names(options.image_field, EDIT_OUTPUT_FIELDS)[0]] = contents[outputs[0]]
    if texts:
        values[field_names(options.text_field, EDIT_FIELDS)[0]] = contents[texts[0]]
    record = edit_record(None, options, key, values)
    unread = sorted(set(sample.members) - {"json", *inputs, *outputs, *texts})
    return dataclasses.replace(record, unused=(*record.unused, *(f".{ending}" for ending in unread)))


def _matching(contents: dict[str, bytes], name: str | None, pattern: re.Pattern[str]) -> list[str]:
    """Returns the endings that match a pattern, sorted by their number; or `name` if it is given and present."""
    if name is not None:
        return [name] if name in contents else []
    found = [ending for ending in contents if pattern.fullmatch(ending)]
    return sorted(found, key=lambda ending: (len(ending.rpartition(".")[0]), ending))
