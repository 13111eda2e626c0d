"""Files that others made: whatever is wrong with one is told in one sentence that names it."""

import contextlib
import json
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
"""What code that takes a file at its word raises over one that lies."""

_POINTER = b"version https://git-lfs"
_LONGEST_REASON = 200


@contextlib.contextmanager
def reading(file: str | os.PathLike[str], remedy: str = "fetch it again") -> Iterator[None]:
    """Makes a fault in the content of a file a mistake of whoever gave it. A `JanusError` passes as it is.

    Around code that interprets the file, and no more than that: a fault of our own should stay a traceback.

    Args:
      file: that is read inside.
      remedy: what helps if its content is damaged.

    Raises:
      JanusError: for each of `PARSE_ERRORS`.
    """
    try:
        yield
    except JanusError:
        raise
    except FileNotFoundError as error:
        raise JanusError(f"{error.filename or file} does not exist.") from error
    except OSError as error:
        raise JanusError(f"{error.filename or file} cannot be read ({error.strerror or error}).") from error
    except PARSE_ERRORS as error:
        raise JanusError(f"{file} is damaged ({describe_error(error)}); {remedy}.") from error


def describe_error(error: Exception) -> str:
    """What is wrong, in one line of bounded length."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"


@contextlib.contextmanager
def naming(file: str | os.PathLike[str]) -> Iterator[None]:
    """Puts the file's name before the sentence of a `JanusError` that lacks it."""
    try:
        yield
    except JanusError as error:
        if str(file) in str(error):
            raise
        raise JanusError(f"{file}: {error}") from error


def check_lfs_pointer(file: Path, start: bytes) -> None:
    """Checks that a file is not what git-lfs leaves in the place of one that was never fetched.

    Raises:
      JanusError: it is.
    """
    if start.startswith(_POINTER):
        raise JanusError(f"{file} is a git-lfs pointer, not the file itself; run git lfs pull in its folder.")


def read_text(file: Path, remedy: str = "fetch it again") -> str:
    """The text of a UTF-8 file.

    Raises:
      JanusError: the file is missing, is a git-lfs pointer, or is no UTF-8.
    """
    with reading(file, remedy):
        content = file.read_bytes()
        check_lfs_pointer(file, content)
        return content.decode("utf-8")


def read_json(file: Path, remedy: str = "fetch it again") -> dict[str, Any]:
    """The object in a json file.

    Raises:
      JanusError: as `read_text`; or the file is no json, or holds no object.
    """
    text = read_text(file, remedy)
    with reading(file, remedy):
        content = json.loads(text)
    if not isinstance(content, dict):
        raise JanusError(f"{file} holds no json object; {remedy}.")
    return content


def read_json_if_exists(file: Path, remedy: str = "fetch it again") -> dict[str, Any]:
    """As `read_json`; an empty object where nothing has that name."""
    with reading(file, remedy):
        there = file.exists()
    return read_json(file, remedy) if there else {}


def checked_tensor(
    tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], expected_file: str
) -> np.ndarray:
    """Returns a tensor of a weight file in float32.

    Args:
      expected_file: Description of the expected file, for messages.

    Raises:
      JanusError: The tensor is missing or has another shape.
    """
    if name not in tensors:
        raise JanusError(f"The tensor {name} is missing; expected the weights of {expected_file}.")
    if tensors[name].shape != shape:
        found = list(tensors[name].shape)
        raise JanusError(f"The tensor {name} has shape {found}; in {expected_file} it has shape {list(shape)}.")
    return np.asarray(tensors[name], np.float32)
