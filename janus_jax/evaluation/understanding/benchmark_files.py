"""The benchmarks' own files, entry by entry: what is wrong with one is told with its file, place and field."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_jax.errors import JanusError
from janus_jax.files import read_text, reading


@dataclass(frozen=True)
class Entry:
    """One entry of a file.

    Attributes:
      where: the file, and the place in it, as a person would say it.
      values: its fields.
    """

    where: str
    values: Mapping[str, Any]

    def get(self, name: str, expected: str) -> Any:
        """A field that has to be there.

        Args:
          expected: what it holds, in words.

        Raises:
          JanusError: it is not there.
        """
        if self.values.get(name) is None:
            there = ", ".join(map(str, self.values))[:200] or "nothing"
            raise JanusError(f"{self.where}: the field {name} is missing ({expected} is expected); there are: {there}.")
        return self.values[name]

    def text(self, name: str, expected: str = "text") -> str:
        """A field of text, which is not blank.

        Raises:
          JanusError: it is none.
        """
        value = self.get(name, expected)
        if not isinstance(value, str) or not value.strip():
            raise JanusError(f"{self.where}: {name} is {value!r:.80}; {expected} is expected.")
        return value

    def id(self, name: str) -> str:
        """A field that identifies the entry, a whole number or text, as text.

        Raises:
          JanusError: it is neither.
        """
        value = self.get(name, "an id")
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            raise JanusError(f"{self.where}: {name} is {value!r:.80}; a whole number or text is expected.")
        return str(value)

    def one_of(self, name: str, allowed: Sequence[str]) -> str:
        """A field of text that is one of these, whatever its case; as it stands among them.

        Raises:
          JanusError: it is none of them.
        """
        expected = f"one of {', '.join(allowed)}"
        value = self.text(name, expected)
        known = {choice.lower(): choice for choice in allowed}
        if value.strip().lower() not in known:
            raise JanusError(f"{self.where}: {name} is {value!r:.80}; {expected} is expected.")
        return known[value.strip().lower()]

    def entries(self, name: str) -> Iterator["Entry"]:
        """A field that is a list of objects.

        Raises:
          JanusError: it is none.
        """
        return entries(f"{self.where}: {name}", self.get(name, "a list of objects"))

    def picture(self, folder: Path, name: str) -> Path:
        """The path of a picture in a folder, which is not opened.

        Raises:
          JanusError: the name leads out of the folder.
        """
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise JanusError(f"{self.where}: the picture {name!r:.80} lies outside {folder}; a name in it is expected.")
        return folder / name


def json_lines(file: Path) -> Iterator[Entry]:
    """The lines of a file of one json object a line.

    Raises:
      JanusError: the file is missing, or a line holds no object.
    """
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            yield _entry(f"{file}, line {number}", line)


def json_file(file: Path) -> Any:
    """The content of a json file.

    Raises:
      JanusError: it is missing, or no json.
    """
    text = read_text(file)
    with reading(file):
        return json.loads(text)


def json_object(file: Path) -> Entry:
    """A json file that holds an object.

    Raises:
      JanusError: it is missing, or holds none.
    """
    return _object(str(file), json_file(file))


def entries(where: str, values: Any) -> Iterator[Entry]:
    """A list of objects.

    Raises:
      JanusError: it is none.
    """
    if not isinstance(values, list):
        raise JanusError(f"{where} holds {type(values).__name__}; a list of objects is expected.")
    for number, value in enumerate(values, 1):
        yield _object(f"{where}, entry {number}", value)


def named_entries(file: Path) -> Iterator[tuple[str, Entry]]:
    """A json file that holds an object of objects, by name.

    Raises:
      JanusError: it is missing, or holds none.
    """
    for name, value in json_object(file).values.items():
        yield name, _object(f"{file}, entry {name}", value)


def first_there(folder: Path, names: Sequence[str]) -> Path:
    """The first of these files that is there.

    Raises:
      JanusError: none is.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise JanusError(f"{folder} holds no {' or '.join(names)}; look at the layout that --list shows.")


def percent(right: Sequence[bool]) -> float:
    """The share of what is right, in percent; of nothing, 0."""
    return 100 * sum(right) / len(right) if right else 0.0


def _entry(where: str, text: str) -> Entry:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JanusError(f"{where}: a json object is expected, but it is no json ({str(error)[:100]}).") from None
    return _object(where, value)


def _object(where: str, value: Any) -> Entry:
    if not isinstance(value, Mapping):
        raise JanusError(f"{where} holds {type(value).__name__}; a json object is expected.")
    return Entry(where, value)
