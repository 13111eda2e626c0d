"""Checks records before they are written, and blends their transparent images over a background."""

import dataclasses
import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.errors import JanusError
from janus_jax.processing import TEMPLATES, Background, Task, TooManyPixels, decode_image
from janus_jax.processing.tokenizer import BEGIN_OF_GENERATION, IMAGE_PLACEHOLDER, REQUIRED_TOKENS

MAX_CHARACTERS = 2**22
"""Most characters of a record's text. Far more than a model's context."""

MAX_IMAGES = 64

_SPECIAL_TOKENS = (*REQUIRED_TOKENS, BEGIN_OF_GENERATION)


class ValidRecord(NamedTuple):
    """A record to write.

    Attributes:
      record: The record.
      transparent_images: Number of its images that have transparent pixels in the input.
    """

    record: Record
    transparent_images: int


def validate(record: Record, background: Background = "none") -> ValidRecord:
    """Checks a record against its task and decodes its images completely.

    Args:
      record: The record.
      background: Background of transparent pixels, see `Background`. Blended images are stored as PNG; all other images
        keep their encoding.

    Raises:
      RejectedRecord: The record cannot be used for its task.
    """
    if record.task is Task.GENERATION and len(record.images) != 1:
        raise RejectedRecord(RejectReason.NO_IMAGE, f"it has {len(record.images)} target images; it needs one.")
    if record.task is Task.EDITING and len(record.images) < 2:
        raise RejectedRecord(
            RejectReason.NO_IMAGE, f"it has {len(record.images)} images; it needs an input image and a target image."
        )
    if record.task is Task.UNDERSTANDING and not record.images:
        raise RejectedRecord(RejectReason.NO_IMAGE, "it has no input image.")
    if len(record.images) > MAX_IMAGES:
        raise RejectedRecord(RejectReason.TOO_LONG, f"it has {len(record.images)} images; at most {MAX_IMAGES}.")
    if record.messages:
        _validate_messages(record)
    else:
        if not record.text.strip():
            raise RejectedRecord(RejectReason.EMPTY_TEXT, "its text is empty.")
        _validate_texts([record.text])
    _validate_texts(record.alternatives)
    images, transparent = [], 0
    for number, content in enumerate(record.images, 1):
        try:
            image, is_transparent = decode_image(content, background=background)
        except JanusError as error:
            reason = RejectReason.IMAGE_TOO_LARGE if isinstance(error, TooManyPixels) else RejectReason.BAD_IMAGE
            raise RejectedRecord(reason, f"image {number} of {len(record.images)}: {error}") from None
        transparent += is_transparent
        images.append(_to_png(image) if is_transparent and background != "none" else content)
    return ValidRecord(dataclasses.replace(record, images=tuple(images)), transparent)


def _to_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _validate_messages(record: Record) -> None:
    contents = [message["content"] for message in record.messages]
    _validate_texts([content.replace(IMAGE_PLACEHOLDER, "") for content in contents])
    if (count := sum(content.count(IMAGE_PLACEHOLDER) for content in contents)) != len(record.images):
        raise RejectedRecord(
            RejectReason.IMAGE_COUNT, f"it has {len(record.images)} images and {count} image placeholders."
        )
    try:
        rendered = TEMPLATES["janus_pro"].render(record.messages)
    except JanusError as error:
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, str(error)) from None
    if not rendered.answers:
        raise RejectedRecord(RejectReason.EMPTY_TEXT, "its conversation has no answer.")


def _validate_texts(texts: Sequence[str]) -> None:
    if (length := sum(map(len, texts))) > MAX_CHARACTERS:
        raise RejectedRecord(RejectReason.TOO_LONG, f"its text has {length} characters; at most {MAX_CHARACTERS}.")
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise RejectedRecord(RejectReason.MALFORMED, "its text is not UTF-8.") from None
        for token in _SPECIAL_TOKENS:
            if token in text:
                raise RejectedRecord(RejectReason.SPECIAL_TOKEN, f"its text contains the special token {token}.")
