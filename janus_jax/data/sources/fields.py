"""Converts values of input files to texts, images and records. Invalid values raise `RejectedRecord`."""

import base64
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import SourceOptions
from janus_jax.errors import JanusError
from janus_jax.processing import Message, Task
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

MAX_BYTES = 2**28
"""Most bytes of an image file, line or field."""

TEXT_FIELDS = ("caption", "text")
IMAGE_FIELDS = ("image", "image_path", "file_name", "path", "jpg")


@dataclass(frozen=True)
class ImageFolder:
    """Folder of images. Paths that lead out of it are rejected, because caption files from the web are not trusted."""

    root: str

    @classmethod
    def of(cls, options: SourceOptions, file: Path) -> "ImageFolder":
        """Returns the image folder of the options. Default: the folder of the input file."""
        return cls(os.path.abspath(file.parent if options.images is None else options.images))

    def read(self, name: str) -> bytes:
        """Reads an image file without decoding it.

        Raises:
          RejectedRecord: The path leads out of the folder, is not a file, or the file is too large.
        """
        # Links are not resolved: the user may have put links to other folders into this one.
        path = Path(os.path.normpath(os.path.join(self.root, name)))
        if not path.is_relative_to(self.root):
            raise RejectedRecord(RejectReason.MISSING_FILE, f"{name} is outside {self.root}, the folder of images.")
        try:
            if not path.is_file():  # Such as a device, which may have no end.
                raise RejectedRecord(RejectReason.MISSING_FILE, f"{path} does not exist or is not a file.")
            check_size(path.stat().st_size, str(path))
            return path.read_bytes()
        except (OSError, ValueError) as error:  # For example, the name contains NUL or is too long.
            reason = getattr(error, "strerror", None) or error
            raise RejectedRecord(RejectReason.MISSING_FILE, f"{name!r:.200} cannot be read ({reason}).") from None


def check_size(size: int, name: str) -> None:
    """Checks the size of an image file.

    Raises:
      RejectedRecord: The file is too large.
    """
    if size > MAX_BYTES:
        raise RejectedRecord(RejectReason.IMAGE_TOO_LARGE, f"{name} has {size} bytes; at most {MAX_BYTES} are read.")


def json_object(content: bytes | str, name: str) -> Mapping[str, Any]:
    """Parses a JSON object. `name` is its name in messages.

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
    """Returns a JSON value after checking that it is an object. `name` is its name in messages.

    Raises:
      RejectedRecord: The value is not an object.
    """
    if not isinstance(value, Mapping):
        raise RejectedRecord(RejectReason.MALFORMED, f"{name} is a {type(value).__name__}, not an object.")
    return value


def field_names(name: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the possible names of a field: `name`, or the usual names if `name` is None."""
    return usual if name is None else (name,)


def find_field(where: str, found: Iterable[str], flag: str, name: str | None, usual: tuple[str, ...]) -> str:
    """Returns the name of a field in a table: `name`, or the first usual name that is found.

    Args:
      where: Start of the error message, such as "a.csv has no column".
      found: Names of the table's fields.
      flag: Flag that sets `name`.
      name: Name from the flag, or None.
      usual: Usual names.

    Raises:
      JanusError: The table does not have the field.
    """
    found, names = list(found), field_names(name, usual)
    for candidate in names:
        if candidate in found:
            return candidate
    raise JanusError(
        f"{where} {' or '.join(names)}, only {', '.join(found) or 'none'}; name the right one with {flag}."
    )


def get_field(values: Mapping[str, Any], name: str | None, usual: tuple[str, ...]) -> Any:
    """Returns the value of the field `name`. If `name` is None, returns the first usual field that is not null.

    Raises:
      RejectedRecord: The field is missing or null.
    """
    names = field_names(name, usual)
    for candidate in names:
        if values.get(candidate) is not None:
            return values[candidate]
    found = ", ".join(map(str, values))[:200] or "nothing"
    raise RejectedRecord(RejectReason.MISSING_FIELD, f"it has no {' or '.join(names)}, only {found}.")


def get_text(value: Any) -> str:
    """Returns a string or UTF-8 bytes as text without surrounding white space.

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
    """Returns the bytes of an encoded image.

    Args:
      value: The bytes, a path in the folder, a base64 data URL, or `{"bytes": ..., "path": ...}`.
      folder: Folder that paths are relative to.

    Raises:
      RejectedRecord: The value is none of these, or `ImageFolder.read` rejects the path.
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
    """Returns a record whose caption is the prompt of the image (generation), or the answer to a question about it."""
    if options.task is Task.GENERATION:
        return Record(key, Task.GENERATION, text=caption, images=(image,))
    # CRC-32, because hash() differs between runs.
    prompt = options.prompts[zlib.crc32(key.encode("utf-8", "surrogatepass")) % len(options.prompts)]
    messages: tuple[Message, ...] = (
        {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{prompt}"},
        {"role": "assistant", "content": caption},
    )
    return Record(key, Task.UNDERSTANDING, messages=messages, images=(image,))
