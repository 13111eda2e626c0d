"""Reads files that users provide. A problem in such a file raises a `JanusError` whose message names the file."""

import contextlib
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from janus_jax.buckets import bucket_errors
from janus_jax.errors import JanusError

PARSE_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
"""Exceptions that parsers raise for malformed content."""

_LFS_POINTER = b"version https://git-lfs"
_MAX_REASON_LENGTH = 200


@contextlib.contextmanager
def reading(file: str | os.PathLike[str], remedy: str = "fetch it again") -> Iterator[None]:
    """Context manager that turns parse errors in a user's file into `JanusError`.

    The block should contain only code that reads the file, so that bugs in other code keep their traceback.

    Args:
      file: The file that the block reads.
      remedy: How to fix malformed content, for the message.

    Raises:
      JanusError: The block raised one of `PARSE_ERRORS`. A `JanusError` passes unchanged.
      StorageUnavailable: The file is on a bucket that does not answer.
    """
    try:
        with bucket_errors(file):
            yield
    except JanusError:
        raise
    except FileNotFoundError as error:
        raise JanusError(f"{error.filename or file} does not exist.") from error
    except OSError as error:
        raise JanusError(f"{error.filename or file} cannot be read ({error.strerror or error}).") from error
    except PARSE_ERRORS as error:
        # A parser fails alike for damaged files and for healthy ones of a format or version that it does not know.
        raise JanusError(f"{file} is damaged or of another format ({describe_error(error)}); {remedy}.") from error


def describe_error(error: Exception) -> str:
    """Returns the type and message of an exception in one line of bounded length."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return reason if len(reason) <= _MAX_REASON_LENGTH else f"{reason[:_MAX_REASON_LENGTH]}…"


@contextlib.contextmanager
def prefix_errors(file: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager that prefixes the message of a `JanusError` with `file`, unless the message contains it."""
    try:
        yield
    except JanusError as error:
        if str(file) in str(error):
            raise
        raise type(error)(f"{file}: {error}") from error


def check_lfs_pointer(file: Path, start: bytes) -> None:
    """Checks that a file is not a git-lfs pointer.

    Args:
      file: The file, for the message.
      start: First bytes of the file.

    Raises:
      JanusError: The file is a git-lfs pointer.
    """
    if start.startswith(_LFS_POINTER):
        raise JanusError(f"{file} is a git-lfs pointer, not the file itself; run git lfs pull in its folder.")


def read_text(file: Path, remedy: str = "fetch it again") -> str:
    """Reads a UTF-8 file. A byte order mark at its start is removed.

    Raises:
      JanusError: The file is missing, is a git-lfs pointer, or is not UTF-8.
    """
    with reading(file, remedy):
        content = file.read_bytes()
        check_lfs_pointer(file, content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is 0x{content[error.start]:02x}"
        raise JanusError(f"{file} is not UTF-8 text ({reason}); save it as UTF-8, or {remedy}.") from error


def read_lines(file: Path, remedy: str = "fetch it again") -> list[str]:
    """Reads the lines of a UTF-8 file, without blank lines and without white space around them.

    Only line feeds end lines. The other separators of `str.splitlines`, such as U+2028, occur within lines.

    Raises:
      JanusError: `read_text` fails.
    """
    lines = (line.strip() for line in read_text(file, remedy).split("\n"))
    return [line for line in lines if line]


def read_json(file: Path, remedy: str = "fetch it again") -> dict[str, Any]:
    """Reads a JSON file that contains an object.

    Raises:
      JanusError: `read_text` fails, or the content is not a JSON object.
    """
    text = read_text(file, remedy)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JanusError(f"{file} is not valid JSON ({describe_error(error)}); {remedy}.") from error
    if not isinstance(content, dict):
        raise JanusError(f"{file} does not contain a JSON object; {remedy}.")
    return content


def read_json_if_exists(file: Path, remedy: str = "fetch it again") -> dict[str, Any]:
    """Reads a JSON file that contains an object. Returns an empty object if the file does not exist."""
    with reading(file, remedy):
        exists = file.exists()
    return read_json(file, remedy) if exists else {}
