"""Fields out of other projects' json files, with one sentence for whatever is wrong with them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from janus_jax.errors import JanusError

T = TypeVar("T")


class Section:
    """One object of a json file, which knows where it stands.

    Args:
      values: the object.
      where: the file and the way to the object, for messages.
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise JanusError(f"{where} is {values!r:.80}; it must be an object.")
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def section(self, name: str) -> "Section":
        """The object under that name, empty where it is absent."""
        found = self.values.get(name)
        return Section({} if found is None else found, f"{self.where}: {name}")

    def get(self, name: str, default: T) -> T:
        """The value under that name, of the kind that the default is of; the default where it is absent or null.

        Raises:
          JanusError: it is of another kind.
        """
        value = self.values.get(name)
        if value is None:
            return default
        kind: Any = type(default)
        if kind is tuple and isinstance(value, list):
            return tuple(value)  # type: ignore[return-value]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)  # type: ignore[return-value]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise JanusError(f"{self.where}: {name} is {value!r:.80}; it must be of type {kind.__name__}.")
        return value

    def require(self, name: str, *allowed: Any) -> None:
        """Checks a field that decides what the network computes; the first of `allowed` is its default.

        Raises:
          JanusError: it has another value.
        """
        value = self.values.get(name, allowed[0])
        if value not in allowed:
            raise JanusError(
                f"{self.where}: {name} is {value!r:.80}; the networks here have {' or '.join(map(repr, allowed))}."
            )
