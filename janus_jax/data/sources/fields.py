"""Converts values of input files to texts, images and records. Invalid values raise `RejectedRecord`."""

import base64
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
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

_REMOTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


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


class RawRecord:
    """Values of an object or a table row by field. Keeps track of the fields that were used."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._used: set[str] = set()

    def find(self, names: Sequence[str]) -> Any:
        """Returns the value of the first field in `names` that is not null; None if there is none."""
        for name in names:
            if self._values.get(name) is not None:
                self._used.add(name)
                return self._values[name]
        return None

    def get(self, names: Sequence[str], hint: str = "") -> Any:
        """Returns the value of the first field in `names` that is not null.

        Args:
          names: Possible names of the field.
          hint: End of the message, with a remedy.

        Raises:
          RejectedRecord: All of these fields are missing or null.
        """
        if (value := self.find(names)) is not None:
            return value
        if null := [name for name in names if name in self._values]:
            raise RejectedRecord(RejectReason.MISSING_FIELD, f"its {null[0]} is null.")
        found = ", ".join(map(str, self._values))[:200] or "nothing"
        raise RejectedRecord(RejectReason.MISSING_FIELD, f"it has no {' or '.join(names[:2])}, only {found}{hint}.")

    def has(self, names: Sequence[str]) -> bool:
        """Returns whether one of the fields is present and not null."""
        return any(self._values.get(name) is not None for name in names)

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the fields that have a value and were not read."""
        return tuple(name for name, value in self._values.items() if not (name in self._used or is_blank(value)))


def is_blank(value: Any) -> bool:
    """Returns whether a value is null, or an empty string, list or object."""
    return value is None or (isinstance(value, str | list | Mapping) and not value)


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
        f"{where} {' or '.join(names[:2])}, only {', '.join(found) or 'none'}; name the right one with {flag}."
    )


def get_text(value: Any) -> str:
    """Returns a string or UTF-8 bytes as text without surrounding white space.

    Raises:
      RejectedRecord: The value is not a string, not UTF-8, or blank.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError:
            raise RejectedRecord(RejectReason.MALFORMED, "its text is not UTF-8.") from None
    if not isinstance(value, str):
        raise RejectedRecord(RejectReason.MALFORMED, f"its text is a {type(value).__name__}.")
    if not value.strip():
        raise RejectedRecord(RejectReason.EMPTY_TEXT, "its text is empty.")
    return value.strip()


def get_texts(value: Any) -> tuple[str, ...]:
    """Returns a text, or the texts in a list without its blank elements.

    Raises:
      RejectedRecord: `get_text` rejects the value, or the list has no text.
    """
    if not isinstance(value, list):
        return (get_text(value),)
    texts = tuple(get_text(one) for one in value if one is not None and not (isinstance(one, str) and not one.strip()))
    if not texts:
        raise RejectedRecord(RejectReason.EMPTY_TEXT, "its list of texts is empty.")
    return texts


def get_image(value: Any, folder: ImageFolder | None) -> bytes:
    """Returns the bytes of an encoded image.

    Args:
      value: The bytes, a path in the folder, a base64 data URL, or an object with one of these as `bytes`, `path`,
        `url` or `base64`.
      folder: Folder that paths are relative to. None: paths are rejected.

    Raises:
      RejectedRecord: The value is none of these, or `ImageFolder.read` rejects the path.
    """
    if isinstance(value, Mapping):
        if value.get("base64"):
            return _decode_base64(value["base64"])
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, str) and value.startswith("data:"):
        return _decode_base64(value.partition(",")[2])
    if isinstance(value, str) and value.strip():
        path = value.strip().removeprefix("file://")
        if _REMOTE.match(path):
            message = f"its image is the address {path:.200}; download the images, and give their paths."
            raise RejectedRecord(RejectReason.REMOTE_IMAGE, message)
        if folder is None:
            raise RejectedRecord(RejectReason.MISSING_FILE, f"its image is the path {path:.200}, which is not read.")
        return folder.read(path)
    if not value:
        raise RejectedRecord(RejectReason.NO_IMAGE, "its image is empty.")
    if not isinstance(value, bytes):
        raise RejectedRecord(RejectReason.MALFORMED, f"its image is a {type(value).__name__}.")
    check_size(len(value), "its image")
    return value


def _decode_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise RejectedRecord(RejectReason.BAD_IMAGE, "its image's data URL is not base64.") from None


def caption_record(
    key: str, captions: tuple[str, ...], image: bytes, options: SourceOptions, unused: tuple[str, ...] = ()
) -> Record:
    """Returns a record of an image with one or more captions.

    A caption is the prompt of the image (generation), or the answer to a question about it (understanding).
    """
    messages: tuple[Message, ...] = ()
    if options.task is Task.UNDERSTANDING:
        # CRC-32, because hash() differs between runs.
        prompt = options.prompts[zlib.crc32(key.encode("utf-8", "surrogatepass")) % len(options.prompts)]
        messages = (
            {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{prompt}"},
            {"role": "assistant", "content": captions[0]},
        )
    text = "" if messages else captions[0]
    return Record(key, options.task, text, messages, (image,), alternatives=captions[1:], unused=unused)
