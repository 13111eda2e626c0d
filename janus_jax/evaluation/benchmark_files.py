"""Readers and writers of benchmark files.

All readers raise `JanusError` for missing and malformed files. The message names the file, the entry and the field.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_jax.errors import JanusError
from janus_jax.extras import require
from janus_jax.files import read_text, reading


@dataclass(frozen=True)
class Entry:
    """A JSON object or table row of a benchmark file.

    Attributes:
      where: File name and position in the file, for messages.
      values: Values of the fields by name.
    """

    where: str
    values: Mapping[str, Any]

    def get(self, name: str, expected: str) -> Any:
        """Returns the value of a field.

        Args:
          expected: Description of the expected value, for messages.

        Raises:
          JanusError: The field is missing or null.
        """
        if self.values.get(name) is None:
            fields = ", ".join(map(str, self.values))[:200] or "(none)"
            raise JanusError(f"{self.where}: the field {name} is missing; expected {expected}. Its fields: {fields}.")
        return self.values[name]

    def text(self, name: str, expected: str = "text") -> str:
        """Returns the value of a field that contains text other than spaces."""
        value = self.get(name, expected)
        if not isinstance(value, str) or not value.strip():
            raise self._error(name, expected)
        return value

    def id(self, name: str) -> str:
        """Returns the value of a field that contains an integer or text, as text."""
        value = self.get(name, "an id")
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            raise self._error(name, "an integer or text")
        return str(value)

    def one_of(self, name: str, allowed: Sequence[str]) -> str:
        """Returns the element of `allowed` that equals the field's value, ignoring case and surrounding space."""
        expected = f"one of {', '.join(allowed)}"
        value = self.text(name, expected).strip().lower()
        for choice in allowed:
            if choice.lower() == value:
                return choice
        raise self._error(name, expected)

    def entries(self, name: str) -> Iterator["Entry"]:
        """Yields the objects of a field that contains a list of objects."""
        return entries(f"{self.where}: {name}", self.get(name, "a list of objects"))

    def image_path(self, folder: Path, name: str) -> Path:
        """Returns the path of an image in a folder. Does not open the file.

        Raises:
          JanusError: The name leads out of the folder.
        """
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise JanusError(f"{self.where}: the image {name!r:.80} is outside {folder}; expected a name inside it.")
        return folder / name

    def _error(self, name: str, expected: str) -> JanusError:
        return JanusError(f"{self.where}: {name} is {self.values[name]!r:.80}; expected {expected}.")


def read_json_lines(file: Path) -> Iterator[Entry]:
    """Yields the objects of a JSON Lines file."""
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            where = f"{file}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise JanusError(f"{where} is not JSON ({str(error)[:100]}); expected a JSON object.") from None
            yield _entry(where, value)


def read_json_value(file: Path) -> Any:
    """Returns the content of a JSON file."""
    text = read_text(file)
    with reading(file):
        return json.loads(text)


def read_json_entry(file: Path) -> Entry:
    """Returns the object in a JSON file."""
    return _entry(str(file), read_json_value(file))


def read_named_entries(file: Path) -> Iterator[tuple[str, Entry]]:
    """Yields names and values of a JSON object whose values are objects."""
    for name, value in read_json_entry(file).values.items():
        yield name, _entry(f"{file}, entry {name}", value)


def read_parquet(file: Path, columns: Sequence[str] | None = None) -> Iterator[Entry]:
    """Yields the rows of a Parquet file, with the given columns that it has, or with all."""
    require(str(file), "pyarrow")
    import pyarrow.parquet

    try:
        with reading(file):
            names = pyarrow.parquet.read_schema(file).names
            wanted = None if columns is None else [name for name in columns if name in names]
            rows = pyarrow.parquet.read_table(file, columns=wanted).to_pylist()
    # Not all errors of pyarrow derive from the types that `reading` handles.
    except pyarrow.ArrowException as error:
        raise JanusError(f"{file} is damaged or of another format ({str(error)[:100]}); download it again.") from error
    for number, row in enumerate(rows, 1):
        yield Entry(f"{file}, row {number}", row)


def entries(where: str, values: Any) -> Iterator[Entry]:
    """Yields the objects of a list.

    Args:
      where: File name and position of the list, for messages.
    """
    if not isinstance(values, list):
        raise JanusError(f"{where} is {type(values).__name__}; expected a list of objects.")
    for number, value in enumerate(values, 1):
        yield _entry(f"{where}, entry {number}", value)


def write_json_lines(file: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON Lines file."""
    file.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")


def _entry(where: str, value: Any) -> Entry:
    if not isinstance(value, Mapping):
        raise JanusError(f"{where} is {type(value).__name__}; expected a JSON object.")
    return Entry(where, value)
