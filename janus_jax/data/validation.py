"""What every record must be, whatever it was made from."""

import contextlib
from collections.abc import Iterator

from janus_jax.data.records import Record
from janus_jax.data.sources import RejectedRecord, RejectReason
from janus_jax.errors import JanusError
from janus_jax.processing import TEMPLATES, Task, TooManyPixels, open_image
from janus_jax.processing.tokenizer import BEGIN_OF_GENERATION, IMAGE_PLACEHOLDER, REQUIRED_TOKENS

LONGEST_TEXT = 2**22
"""Characters of a record's text: hundreds of times what a model reads."""

MOST_IMAGES = 64

_FORBIDDEN = (*REQUIRED_TOKENS, BEGIN_OF_GENERATION)


def check(record: Record) -> None:
    """Holds a record against its task, and decodes its images, to the last pixel.

    Raises:
      RejectedRecord: the record would teach nothing, or something else than it says.
    """
    if record.task is Task.GENERATION and len(record.images) != 1:
        raise RejectedRecord(RejectReason.NO_IMAGE, f"it has {len(record.images)} images to generate; it needs one.")
    if record.task is Task.UNDERSTANDING and not record.images:
        raise RejectedRecord(RejectReason.NO_IMAGE, "it has no image to understand.")
    if len(record.images) > MOST_IMAGES:
        raise RejectedRecord(RejectReason.TOO_LONG, f"it has {len(record.images)} images; {MOST_IMAGES} are the most.")
    if record.messages:
        _check_messages(record)
    else:
        _check_text(record.text)
        _check_special(record.text)
    for number, image in enumerate(record.images, 1):
        with _refusing(f"image {number} of {len(record.images)}"):
            open_image(image).close()


def _check_messages(record: Record) -> None:
    contents = [message["content"] for message in record.messages]
    for content in contents:
        _check_encodable(content)
        _check_special(content.replace(IMAGE_PLACEHOLDER, ""))
    if sum(map(len, contents)) > LONGEST_TEXT:
        raise RejectedRecord(RejectReason.TOO_LONG, f"its conversation has more than {LONGEST_TEXT} characters.")
    if (places := sum(content.count(IMAGE_PLACEHOLDER) for content in contents)) != len(record.images):
        raise RejectedRecord(RejectReason.IMAGE_COUNT, f"it has {len(record.images)} images, but places for {places}.")
    try:
        rendered = TEMPLATES["janus_pro"].render_with_answers(record.messages)
    except JanusError as error:
        raise RejectedRecord(RejectReason.BAD_CONVERSATION, str(error)) from None
    if not rendered.answers:
        raise RejectedRecord(RejectReason.EMPTY_TEXT, "its conversation has no answer.")


def _check_text(text: str) -> None:
    if not text.strip():
        raise RejectedRecord(RejectReason.EMPTY_TEXT, "its text is empty.")
    if len(text) > LONGEST_TEXT:
        raise RejectedRecord(
            RejectReason.TOO_LONG, f"its text has {len(text)} characters; {LONGEST_TEXT} are the most."
        )
    _check_encodable(text)


def _check_encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RejectedRecord(RejectReason.MALFORMED, "its text is no UTF-8.") from None


def _check_special(text: str) -> None:
    for token in _FORBIDDEN:
        if token in text:
            raise RejectedRecord(
                RejectReason.SPECIAL_TOKEN, f"its text spells {token}, which means something to the model."
            )


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    try:
        yield
    except TooManyPixels as error:
        raise RejectedRecord(RejectReason.IMAGE_TOO_LARGE, f"{name}: {error}") from None
    except JanusError as error:
        raise RejectedRecord(RejectReason.BAD_IMAGE, f"{name}: {error}") from None
