"""Captions of classes, by name or by number."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.errors import JanusError
from janus_jax.files import read_text

# A WordNet id as in ImageNet, or a number.
_IDENTIFIER = re.compile(r"(n\d{8}|\d+)[:,]?$")


@dataclass(frozen=True)
class ClassNames:
    """Captions of classes.

    Attributes:
      file: Path of the file with the captions, for messages.
      by_name: Captions by name.
      by_number: Captions by number, counted from 0.
    """

    file: str
    by_name: Mapping[str, str]
    by_number: Sequence[str]

    def caption(self, label: str) -> str:
        """Returns the caption of a class.

        Args:
          label: Name or number of the class.

        Raises:
          RejectedRecord: The file does not have the class.
        """
        if label in self.by_name:
            return self.by_name[label]
        if label.isdecimal() and int(label) < len(self.by_number):
            return self.by_number[int(label)]
        message = f"its class is {label!r:.80}; {self.file} has {len(self.by_number)} others."
        raise RejectedRecord(RejectReason.MISSING_FIELD, message)


def class_caption(label: str, class_names: str | None) -> str:
    """Returns the caption of a class. Without a file `class_names`, it is the class name with spaces for underscores.

    Raises:
      RejectedRecord: The file does not have the class, or the class is a number without a file.
    """
    label = label.strip()
    if class_names is not None:
        return read_class_names(class_names).caption(label)
    if label.isdecimal():
        message = f"its class is the number {label}; give --class_names a file with the captions of the classes."
        raise RejectedRecord(RejectReason.MISSING_FIELD, message)
    return label.replace("_", " ")


@cache
def read_class_names(file: str) -> ClassNames:
    """Reads the captions of classes.

    The file has one class per line: a caption (`tabby cat`), or a name and a caption (`n01440764 tench`). Or it is a
    JSON array of captions, or a JSON object of captions by name or number.

    Raises:
      JanusError: The file cannot be read.
    """
    text = read_text(Path(file), "give another")
    if text.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(text)
        except ValueError as error:
            raise JanusError(f"{file} is not valid JSON ({error}); fix it.") from error
        if isinstance(value, list):
            captions = [_last(one) for one in value]
            return ClassNames(file, {}, captions)
        by_name = {str(name): _last(caption) for name, caption in value.items()}
        return ClassNames(file, by_name, list(by_name.values()))
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    pairs = [line.split(maxsplit=1) for line in lines]
    by_name = {name.rstrip(":,"): rest[0].strip() for name, *rest in pairs if rest}
    named = all(len(pair) == 2 and _IDENTIFIER.match(pair[0]) for pair in pairs)
    return ClassNames(file, by_name, list(by_name.values()) if named else lines)


def _last(value: Any) -> str:
    """Returns a caption; of a pair such as ["n01440764", "tench"], the last element."""
    return str(value[-1] if isinstance(value, list) and value else value)
