"""Reads fields of other projects' json files and raises `JanusError` for wrong values."""

from collections.abc import Mapping
from typing import Any, TypeVar

from janus_jax.errors import JanusError

T = TypeVar("T")


class JsonObject:
    """An object in a json file.

    Args:
      values: The content of the object.
      where: The file, and the path of the object in it, for messages.
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise JanusError(f"{where} is {values!r:.80}; it must be an object.")
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def object(self, name: str) -> "JsonObject":
        """Returns the object in a field; an empty object if the field is absent or null."""
        found = self.values.get(name)
        return JsonObject({} if found is None else found, f"{self.where}: {name}")

    def required_object(self, name: str) -> "JsonObject":
        """Returns the object in a field.

        Raises:
          JanusError: The field is absent or null.
        """
        if name not in self:
            found = f"its fields are {', '.join(map(str, self.values))[:200]}" if self.values else "it has no fields"
            raise JanusError(f"{self.where}: {name} is missing ({found}); fetch the file that belongs to the weights.")
        return self.object(name)

    def get(self, name: str, default: T) -> T:
        """Returns the value of a field; the default if the field is absent or null.

        Raises:
          JanusError: The value is of another type than the default.
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
        """Checks that a field has one of the allowed values. An absent field has the first of them.

        Raises:
          JanusError: The field has another value.
        """
        value = self.values.get(name, allowed[0])
        if value not in allowed:
            raise JanusError(
                f"{self.where}: {name} is {value!r:.80}; janus_jax supports only {' or '.join(map(repr, allowed))}."
            )

    def require_present(self, field: str) -> None:
        """Checks that config.json exists.

        Args:
          field: A field that the weights do not imply, for the message.

        Raises:
          JanusError: The object is empty.
        """
        if not self.values:
            raise JanusError(f"{self.where} does not exist, and only config.json states {field}; fetch it.")
