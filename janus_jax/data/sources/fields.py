"""From the values that sources hold to records: texts, images, captions. Errors are raised as `RejectedRecord`."""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_jax.data.records import Record
from janus_jax.data.sources.base import RejectedRecord, RejectReason, SourceOptions
from janus_jax.processing import Message, Task
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

LARGEST_FILE = 2**28
"""Bytes of an image file, or of one line or field, beyond which it is not read."""

TEXT_FIELDS = ("caption", "text")
IMAGE_FIELDS = ("image", "image_path", "file_name", "path", "jpg")


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, and nothing outside it: what a downloaded file of captions names is not trusted."""

    root: str

    @classmethod
    def of(cls, options: SourceOptions, file: Path) -> "ImageFolder":
        """The folder that the options name, or else the file's own."""
        return cls(os.path.abspath(file.parent if options.images is None else options.images))

    def read(self, name: str) -> bytes:
        """The bytes of an image file, not looked at.

        Raises:
          RejectedRecord: it lies elsewhere, does not exist, is no file or is too large.
        """
        # By name alone: links that the user put into the folder may lead out of it.
        path = Path(os.path.normpath(os.path.join(self.root, name)))
        if not path.is_relative_to(self.root):
            raise RejectedRecord(RejectReason.MISSING_FILE, f"{name} lies outside {self.root}, the folder of images.")
        try:
            if not path.is_file():  # neither a folder nor a device, which may never end
                raise RejectedRecord(RejectReason.MISSING_FILE, f"{path} does not exist, or is no file.")
            if (size := path.stat().st_size) > LARGEST_FILE:
                raise RejectedRecord(
                    RejectReason.IMAGE_TOO_LARGE, f"{path} has {size} bytes; at most {LARGEST_FILE} are read."
                )
            return path.read_bytes()
        except (OSError, ValueError) as error:  # a name with a NUL, or longer than any name
            reason = getattr(error, "strerror", None) or error
            raise RejectedRecord(RejectReason.MISSING_FILE, f"{name!r:.200} cannot be read ({reason}).") from None


def json_object(content: bytes | str, where: str) -> Mapping[str, Any]:
    """A json object, whatever is in it.

    Raises:
      RejectedRecord: it is none.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise RejectedRecord(RejectReason.MALFORMED, f"{where} is no json ({str(error)[:100]}).") from None
    if not isinstance(value, Mapping):
        raise RejectedRecord(RejectReason.MALFORMED, f"{where} holds {type(value).__name__} where an object is wanted.")
    return value


def field(values: Mapping[str, Any], name: str | None, usual: Sequence[str]) -> Any:
    """The value of the field `name`, or of the first of the usual names that is there.

    Raises:
      RejectedRecord: it is absent.
    """
    names = usual if name is None else (name,)
    for candidate in names:
        if values.get(candidate) is not None:
            return values[candidate]
    there = ", ".join(map(str, values))[:200]
    raise RejectedRecord(RejectReason.MISSING_FIELD, f"it has no {' or '.join(names)}, only: {there or 'nothing'}.")


def text_of(value: Any) -> str:
    """A text that is one, stripped.

    Raises:
      RejectedRecord: it is of another type, no UTF-8, or blank.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise RejectedRecord(RejectReason.MALFORMED, "its text is no UTF-8.") from None
    if not isinstance(value, str):
        raise RejectedRecord(RejectReason.MALFORMED, f"its text is given as {type(value).__name__}.")
    if not value.strip():
        raise RejectedRecord(RejectReason.EMPTY_TEXT, "its text is empty.")
    return value.strip()


def image_of(value: Any, folder: ImageFolder) -> bytes:
    """An image given as bytes, a path in the folder, a base64 data address, or `{"bytes": ..., "path": ...}`.

    Raises:
      RejectedRecord: it is none of them, or `ImageFolder.read` refuses it.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.startswith("data:"):
        return _data_address(value)
    if isinstance(value, str) and value.strip():
        return folder.read(value.strip())
    if not value:
        raise RejectedRecord(RejectReason.NO_IMAGE, "its image is empty.")
    if not isinstance(value, bytes):
        raise RejectedRecord(RejectReason.MALFORMED, f"its image is given as {type(value).__name__}.")
    if len(value) > LARGEST_FILE:
        raise RejectedRecord(
            RejectReason.IMAGE_TOO_LARGE, f"its image has {len(value)} bytes; at most {LARGEST_FILE} are read."
        )
    return value


def _data_address(value: str) -> bytes:
    import base64
    import binascii

    try:
        return base64.b64decode(value.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise RejectedRecord(RejectReason.BAD_IMAGE, "its image's data address is not encoded in base64.") from None


def caption_record(key: str, caption: str, image: bytes, options: SourceOptions) -> Record:
    """A caption and its image: as the request for it (generation) or as the answer to a prompt (understanding)."""
    if options.task is Task.GENERATION:
        return Record(key, Task.GENERATION, text=caption, images=(image,))
    # hash() of a string differs from run to run.
    prompt = options.prompts[zlib.crc32(key.encode("utf-8", "surrogatepass")) % len(options.prompts)]
    return Record(key, Task.UNDERSTANDING, messages=question_and_answer(prompt, caption), images=(image,))


def question_and_answer(question: str, answer: str) -> tuple[Message, ...]:
    """A turn about one image, which comes first, and its answer."""
    return (
        {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{question}"},
        {"role": "assistant", "content": answer},
    )
