"""Images and captions in tables, with image paths or image bytes.

{"image": "a.jpg", "caption": "A cat on a mat."}
"""

import functools
from collections.abc import Iterator

from janus_jax.data.sources.base import Part, SourceOptions, register_source
from janus_jax.data.sources.fields import ImageFolder, field_names
from janus_jax.data.sources.normalize import CAPTION_FIELDS, EDIT_INPUT_FIELDS, IMAGE_FIELDS, image_caption_record
from janus_jax.data.sources.tables import TABLE_ENDINGS, Columns, TableReader
from janus_jax.processing import Task


@register_source("captions", Task.GENERATION, Task.UNDERSTANDING, endings=TABLE_ENDINGS)
def captions(options: SourceOptions) -> Iterator[Part]:
    """Reads tables of images and captions."""
    texts = field_names(options.text_field, CAPTION_FIELDS)
    images = field_names(options.image_field, IMAGE_FIELDS)
    required = (("--text_field", options.text_field, texts), ("--image_field", options.image_field, images))
    reader = TableReader("captions", Columns(frozenset((*texts, *images, *EDIT_INPUT_FIELDS)), required), options)
    for file in options.files(*TABLE_ENDINGS):
        folder = ImageFolder.of(options, file.path)
        yield from reader.parts(file, functools.partial(image_caption_record, folder, options))
