"""Converts frozen dataclasses to ml_collections configs, which flags can change, to JSON values, and back.

A tuple of dataclasses becomes a config with numbered keys, so that flags can reach into it:
`--config.stages.stage_2.phases.phase_1.weights.text=4`.
"""

import dataclasses
import enum
import functools
import operator
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from janus_jax.errors import JanusError, did_you_mean, similar_names

if TYPE_CHECKING:
    from ml_collections import ConfigDict

T = TypeVar("T")


def to_config(value: Any) -> "ConfigDict":
    """Converts a dataclass to a config."""
    from ml_collections import ConfigDict  # The dataclasses themselves do not need it.

    return ConfigDict(_to_plain("", value, type(value), placeholders=True))


def to_json(value: Any) -> dict[str, Any]:
    """Converts a dataclass to nested JSON values."""
    plain: dict[str, Any] = _to_plain("", value, type(value), placeholders=False)
    return plain


def from_config(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Converts the output of `to_config` or `to_json`, possibly modified, to a dataclass.

    Args:
      cls: The dataclass.
      values: A config or JSON values.
      where: Name of the values in error messages.

    Raises:
      JanusError: A field is missing, unknown or of another type.
    """
    from ml_collections import ConfigDict

    if isinstance(values, ConfigDict):
        values = values.to_dict()
    return _dataclass(cls, values, where)


def check_values(owner: Any, where: str, *rules: tuple[str, bool, str], **minimums: int) -> None:
    """Checks fields of a dataclass.

    Args:
      owner: The dataclass.
      where: Name of the dataclass in error messages.
      *rules: Field name, whether its value is valid, and the allowed values in words.
      **minimums: Smallest allowed value of each of these fields. None is also allowed.

    Raises:
      JanusError: A value is not valid.
    """
    for name, minimum in minimums.items():
        value = getattr(owner, name)
        _require(value is None or value >= minimum, f"{where}.{name}", value, f"{minimum} or more")
    for name, is_valid, allowed in rules:
        _require(is_valid, f"{where}.{name}", getattr(owner, name), allowed)


def best_match(classes: Sequence[type], values: Mapping[str, Any]) -> type:
    """Returns the dataclass with the most field names in common with `values`."""
    return max(classes, key=lambda cls: len(set(values) & set(field_types(cls))))


def field_types(cls: type) -> dict[str, Any]:
    """Returns the types of a dataclass's fields by name."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def no_such_field(where: str, name: str, fields: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """Returns the message for a field that does not exist.

    Args:
      where: Name of the config.
      name: Name of the missing field.
      fields: Names of the fields that exist.
      elsewhere: Names of the fields of other configs, by path. Paths of fields with the name `name` are suggested;
        paths of fields with a similar name only if no name in `fields` is similar.
    """
    fields, elsewhere = list(fields), elsewhere or {}
    suggestions = similar_names(name, fields)
    wanted = [name] if name in elsewhere.values() else [] if suggestions else similar_names(name, elsewhere.values())
    suggestions += [path for one in wanted for path, other in elsewhere.items() if other == one]
    return f"{where}.{name} does not exist.{did_you_mean(suggestions)} Fields of {where}: {', '.join(fields)}."


def _to_plain(name: str, value: Any, kind: Any, placeholders: bool) -> Any:
    """Converts a field to JSON values. With `placeholders`, None becomes a placeholder that flags can set."""
    if value is None:
        from ml_collections import config_dict

        # A config field that holds None would reject all other values.
        return config_dict.placeholder(without_none(kind)) if placeholders and without_none(kind) in _PLAIN else None
    kind = without_none(kind)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = field_types(type(value)).items()
        return {field: _to_plain(field, getattr(value, field), kind, placeholders) for field, kind in fields}
    if isinstance(value, enum.Enum):
        return value.value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and dataclasses.is_dataclass(arguments[0]):
        return {
            f"{name.removesuffix('s')}_{number}": _to_plain("", item, arguments[0], placeholders)
            for number, item in enumerate(value, 1)
        }
    if isinstance(value, Mapping):
        return {key: _to_plain(key, item, arguments[1], placeholders) for key, item in value.items()}
    if origin is tuple:
        return tuple(value)
    # The flag of a field accepts values of the type that the field holds.
    return float(value) if kind is float else value


_PLAIN = (int, float, str)


def _from_plain(kind: Any, value: Any, where: str) -> Any:
    if value is None and type(None) in typing.get_args(kind):
        return None
    kind = without_none(kind)
    if isinstance(kind, types.UnionType):
        kind = best_match(typing.get_args(kind), value if isinstance(value, Mapping) else {})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind), value, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        _require(value in [choice.value for choice in kind], where, value, _one_of(c.value for c in kind))
        return kind(value)
    if origin is Literal:
        _require(value in arguments, where, value, _one_of(arguments))
        return value
    if origin is tuple and dataclasses.is_dataclass(arguments[0]):
        numbers = {key: str(key).rpartition("_")[2] for key in value} if isinstance(value, Mapping) else {"": ""}
        _require(all(map(str.isdecimal, numbers.values())), where, value, "an object with numbered keys")
        in_order = sorted(numbers, key=lambda key: int(numbers[key]))
        return tuple(_from_plain(arguments[0], value[key], f"{where}.{key}") for key in in_order)
    if origin is tuple:
        _require(isinstance(value, list | tuple), where, value, "a list")
        return tuple(_from_plain(arguments[0], item, where) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _require(isinstance(value, Mapping), where, value, "an object")
        return {name: _from_plain(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    accepted = (int, float) if kind is float else kind
    is_valid = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    _require(is_valid, where, value, _WORDS.get(kind, str(kind)))
    return kind(value)


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


def _dataclass(cls: type[T], values: Any, where: str) -> T:
    _require(isinstance(values, Mapping), where, values, f"an object with the fields of {cls.__name__}")
    kinds = field_types(cls)
    if unknown := sorted(set(values) - set(kinds)):
        raise JanusError(no_such_field(where, unknown[0], kinds))
    # Fields with defaults may be missing, because the config of a checkpoint can be older than a field.
    required = {
        f.name
        for f in dataclasses.fields(typing.cast(Any, cls))
        if f.default is f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        raise JanusError(f"{where}.{missing[0]} is missing.")
    return cls(**{name: _from_plain(kinds[name], value, f"{where}.{name}") for name, value in values.items()})


def without_none(kind: Any) -> Any:
    """Returns a type without None."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kinds = [one for one in typing.get_args(kind) if one is not type(None)]
        return functools.reduce(operator.or_, kinds)
    return kind


def _one_of(choices: Any) -> str:
    return f"one of {', '.join(map(str, choices))}"


def _require(is_valid: bool, where: str, value: Any, allowed: str) -> None:
    if not is_valid:
        raise JanusError(f"{where} is {value!r:.80}; it must be {allowed}.")
