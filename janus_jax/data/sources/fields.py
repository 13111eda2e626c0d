"""Converts values of input files to texts, images and records; invalid ones raise `RejectedRecord`."""

import base64
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import SourceOptions
from janus_jax.processing import Message, Task
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

MAX_BYTES = 2**28
"""Largest image file, line or field that is read."""

TEXT_FIELDS = ("caption", "text")
IMAGE_FIELDS = ("image", "image_path", "file_name", "path", "jpg")


@dataclass(frozen=True)
class ImageFolder:
    """Folder of images. Paths that leave it are rejected, because downloaded caption files are not trusted."""

    root: str

    @classmethod
    def of(cls, options: SourceOptions, file: Path) -> "ImageFolder":
        """Returns the folder that the options name, or the folder of the input file."""
        return cls(os.path.abspath(file.parent if options.images is None else options.images))

    def read(self, name: str) -> bytes:
        """Reads an image file without decoding it.

        Raises:
          RejectedRecord: The path leaves the folder, is not a file, or the file is too large.
        """
        # By name only: links that the user put into the folder may lead out of it.
        path = Path(os.path.normpath(os.path.join(self.root, name)))
        if not path.is_relative_to(self.root):
            raise RejectedRecord(RejectReason.MISSING_FILE, f"{name} is outside {self.root}, the folder of images.")
        try:
            if not path.is_file():  # Nor a folder or a device, which may have no end.
                raise RejectedRecord(RejectReason.MISSING_FILE, f"{path} does not exist or is not a file.")
            check_size(path.stat().st_size, str(path))
            return path.read_bytes()
        except (OSError, ValueError) as error:  # A name with a NUL, or too long a name.
            reason = getattr(error, "strerror", None) or error
            raise RejectedRecord(RejectReason.MISSING_FILE, f"{name!r:.200} cannot be read ({reason}).") from None


def check_size(size: int, name: str) -> None:
    """Checks the size of an image file.

    Raises:
      RejectedRecord: It is too large.
    """
    if size > MAX_BYTES:
        raise RejectedRecord(RejectReason.IMAGE_TOO_LARGE, f"{name} has {size} bytes; at most {MAX_BYTES} are read.")


def json_object(content: bytes | str, name: str) -> Mapping[str, Any]:
    """Parses a JSON object.

    Raises:
      RejectedRecord: The content is not a JSON object.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise RejectedRecord(RejectReason.MALFORMED, f"{name} is not JSON ({str(error)[:100]}).") from None
    return as_object(value, name)


def as_object(value: Any, name: str) -> Mapping[str, Any]:
    """Returns a JSON value that must be an object.

    Raises:
      RejectedRecord: The value is not an object.
    """
    if not isinstance(value, Mapping):
        raise RejectedRecord(RejectReason.MALFORMED, f"{name} is a {type(value).__name__}, not an object.")
    return value


def get_field(values: Mapping[str, Any], name: str | None, usual: Sequence[str]) -> Any:
    """Returns the value of the field `name`, or of the first usual name if `name` is None.

    Raises:
      RejectedRecord: The field is missing.
    """
    names = usual if name is None else (name,)
    for candidate in names:
        if values.get(candidate) is not None:
            return values[candidate]
    found = ", ".join(map(str, values))[:200] or "nothing"
    raise RejectedRecord(RejectReason.MISSING_FIELD, f"it has no {' or '.join(names)}, only {found}.")


def get_text(value: Any) -> str:
    """Returns a text without surrounding white space.

    Raises:
      RejectedRecord: The value is not a string, not UTF-8, or blank.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise RejectedRecord(RejectReason.MALFORMED, "its text is not UTF-8.") from None
    if not isinstance(value, str):
        raise RejectedRecord(RejectReason.MALFORMED, f"its text is a {type(value).__name__}.")
    if not value.strip():
        raise RejectedRecord(RejectReason.EMPTY_TEXT, "its text is empty.")
    return value.strip()


def get_image(value: Any, folder: ImageFolder) -> bytes:
    """Returns an encoded image.

    Args:
      value: Bytes, a path in the folder, a base64 data URL, or `{"bytes": ..., "path": ...}`.
      folder: Folder of the paths.

    Raises:
      RejectedRecord: The value is something else, or `ImageFolder.read` rejects it.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.startswith("data:"):
        try:
            return base64.b64decode(value.partition(",")[2], validate=True)
        except ValueError:
            raise RejectedRecord(RejectReason.BAD_IMAGE, "its image's data URL is not base64.") from None
    if isinstance(value, str) and value.strip():
        return folder.read(value.strip())
    if not value:
        raise RejectedRecord(RejectReason.NO_IMAGE, "its image is empty.")
    if not isinstance(value, bytes):
        raise RejectedRecord(RejectReason.MALFORMED, f"its image is a {type(value).__name__}.")
    check_size(len(value), "its image")
    return value


def caption_record(key: str, caption: str, image: bytes, options: SourceOptions) -> Record:
    """Makes a record of a caption: the prompt of the image (generation), or the answer to a question about it."""
    if options.task is Task.GENERATION:
        return Record(key, Task.GENERATION, text=caption, images=(image,))
    # Not hash(), which differs between runs.
    prompt = options.prompts[zlib.crc32(key.encode("utf-8", "surrogatepass")) % len(options.prompts)]
    return Record(key, Task.UNDERSTANDING, messages=question_and_answer(prompt, caption), images=(image,))


def question_and_answer(question: str, answer: str) -> tuple[Message, ...]:
    """Returns a conversation of one question about one image, and its answer."""
    return (
        {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{question}"},
        {"role": "assistant", "content": answer},
    )
