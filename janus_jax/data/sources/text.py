"""Text documents in tables with a field of text, or in plain text files."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from janus_jax.data.sources.base import Part, SourceOptions, TextUnit, register_source, reject_damaged_file
from janus_jax.data.sources.fields import check_size, field_names
from janus_jax.data.sources.input_files import InputFile
from janus_jax.data.sources.normalize import TEXT_FIELDS, text_record
from janus_jax.data.sources.rows import BOM, Row, line_rows, line_spans, rows_part, span_lines
from janus_jax.data.sources.tables import TABLE_ENDINGS, Columns, TableReader, open_packed, packed_codec
from janus_jax.processing import Task

_TEXT_ENDINGS = (".txt", ".txt.gz", ".txt.zst")


@register_source("text", Task.TEXT, shard_records=65536, endings=(*_TEXT_ENDINGS, *TABLE_ENDINGS))
def text(options: SourceOptions) -> Iterator[Part]:
    """Reads documents: a row of a table with a field of text, or a line, paragraph or whole file of plain text."""
    names = field_names(options.text_field, TEXT_FIELDS)
    reader = TableReader("text", Columns(frozenset(names)), options)
    for file in options.files(*_TEXT_ENDINGS, *TABLE_ENDINGS):
        if file.path.name.lower().endswith(_TEXT_ENDINGS):
            yield from _text_parts(file, options)
        else:
            yield from reader.parts(file, functools.partial(text_record, options))


def _text_parts(file: InputFile, options: SourceOptions) -> Iterator[Part]:
    codec = packed_codec(file)
    # A text file has one field, whatever the field of the tables is called.
    make_record = functools.partial(text_record, dataclasses.replace(options, text_field=None))
    if options.text_unit == "line" and codec is None:
        for span in line_spans(file, options.shard_records):
            yield span.part(functools.partial(span_lines, _row), make_record)
    else:
        # Cannot be read from the middle.
        yield rows_part(file, 1, None, functools.partial(_rows, file, codec, options.text_unit), make_record)


def _row(content: bytes, name: str) -> Mapping[str, Any]:
    return {"text": content}


def _rows(file: InputFile, codec: str | None, unit: TextUnit) -> Iterator[tuple[int, Row]]:
    with reject_damaged_file(file.path), open_packed(file, codec) if codec else file.path.open("rb") as stream:
        if unit == "line":
            yield from line_rows(_row, stream, itertools.count(1))
        elif unit == "paragraph":
            groups = itertools.groupby(stream, key=lambda line: bool(line.removeprefix(BOM.encode()).strip()))
            paragraphs = (b"".join(lines) for has_text, lines in groups if has_text)
            yield from ((number, functools.partial(_row, text, "")) for number, text in enumerate(paragraphs, 1))
        else:
            check_size(file.bytes, str(file.path))
            yield 1, functools.partial(_row, stream.read(), "")
