"""Images and captions in tables, with image paths or image bytes; also edits of images (`--task editing`).

{"image": "a.jpg", "caption": "A cat on a mat."}
{"input_image": ["a.jpg"], "input_prompt": "Make it blue.", "output_image": "b.jpg"}
"""

import functools
from collections.abc import Iterator

from janus_jax.data.sources.base import Part, SourceOptions, register_source
from janus_jax.data.sources.fields import ImageFolder, field_names
from janus_jax.data.sources.normalize import (
    CAPTION_FIELDS,
    EDIT_FIELDS,
    EDIT_INPUT_FIELDS,
    EDIT_OUTPUT_FIELDS,
    IMAGE_FIELDS,
    caption_or_edit_record,
)
from janus_jax.data.sources.tables import TABLE_ENDINGS, Columns, TableReader
from janus_jax.processing import Task


@register_source("captions", Task.GENERATION, Task.UNDERSTANDING, Task.EDITING, endings=TABLE_ENDINGS)
def captions(options: SourceOptions) -> Iterator[Part]:
    """Reads tables of images and captions."""
    edits = options.task is Task.EDITING
    texts = field_names(options.text_field, EDIT_FIELDS if edits else CAPTION_FIELDS)
    images = field_names(options.image_field, EDIT_OUTPUT_FIELDS if edits else IMAGE_FIELDS)
    required = (("--text_field", options.text_field, texts), ("--image_field", options.image_field, images))
    columns = Columns(frozenset((*texts, *images, *EDIT_INPUT_FIELDS)), required)
    reader = TableReader("captions", columns, options)
    for file in options.files(*TABLE_ENDINGS):
        folder = ImageFolder.of(options, file.path)
        yield from reader.parts(file, functools.partial(caption_or_edit_record, folder, options))
