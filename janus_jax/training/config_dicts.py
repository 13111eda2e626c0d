"""Frozen dataclasses as ml_collections configs, whose every number a flag can set, and as json; and back.

A tuple of dataclasses becomes a config of numbered ones, so that a flag reaches into it:
`--config.stages.stage_2.phases.phase_1.weights.text=4`.
"""

import dataclasses
import enum
import functools
import operator
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from ml_collections import ConfigDict, config_dict

from janus_jax.errors import JanusError

T = TypeVar("T")


def to_config(value: Any) -> ConfigDict:
    """A dataclass as a config."""
    config = ConfigDict()
    for name, kind in _fields(type(value)).items():
        config[name] = _to_plain(name, getattr(value, name), kind, placeholders=True)
    return config


def to_json(value: Any) -> dict[str, Any]:
    """A dataclass as nested plain values, fit for json."""
    return {name: _to_plain(name, getattr(value, name), kind, False) for name, kind in _fields(type(value)).items()}


def from_config(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """The dataclass that `to_config` or `to_json` was given, with what flags and people have changed since.

    Raises:
      JanusError: a field is missing, unknown or of another kind; the sentence names it.
    """
    if isinstance(values, ConfigDict):
        values = values.to_dict()
    return _dataclass(cls, values, where)


def _fields(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in _declared(cls)}


def _declared(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _to_plain(name: str, value: Any, kind: Any, placeholders: bool) -> Any:
    if value is None:
        # A config that holds None would take nothing else.
        return config_dict.placeholder(_without_none(kind)) if placeholders and _without_none(kind) in _PLAIN else None
    kind = _without_none(kind)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_config(value) if placeholders else to_json(value)
    if isinstance(value, enum.Enum):
        return value.value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and dataclasses.is_dataclass(arguments[0]):
        numbered = {
            f"{name.removesuffix('s')}_{number}": _to_plain("", item, arguments[0], placeholders)
            for number, item in enumerate(value, 1)
        }
        return ConfigDict(numbered) if placeholders else numbered
    if isinstance(value, Mapping):
        plain = {key: _to_plain(key, item, arguments[1], placeholders) for key, item in value.items()}
        return ConfigDict(plain) if placeholders else plain
    if origin is tuple:
        return tuple(value)
    # A flag takes a number of the kind that stands there.
    return float(value) if kind is float else value


_PLAIN = (int, float, str)


def _from_plain(kind: Any, value: Any, where: str) -> Any:
    if value is None and type(None) in typing.get_args(kind):
        return None
    kind = _without_none(kind)
    if isinstance(kind, types.UnionType):
        kind = _dataclass_of(kind, value)
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
        _require(all(map(str.isdecimal, numbers.values())), where, value, "an object of numbered ones")
        in_order = sorted(numbers, key=lambda key: int(numbers[key]))
        return tuple(_from_plain(arguments[0], value[key], f"{where}.{key}") for key in in_order)
    if origin is tuple:
        _require(isinstance(value, list | tuple), where, value, "a list")
        return tuple(_from_plain(arguments[0], item, where) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _require(isinstance(value, Mapping), where, value, "an object")
        return {name: _from_plain(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    accepted = (int, float) if kind is float else kind
    fits = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    _require(fits, where, value, _WORDS.get(kind, str(kind)))
    return kind(value)


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}


def _dataclass(cls: type[T], values: Any, where: str) -> T:
    _require(isinstance(values, Mapping), where, values, f"an object with the fields of {cls.__name__}")
    kinds = _fields(cls)
    if unknown := sorted(set(values) - set(kinds)):
        raise JanusError(f"{where} has no field {unknown[0]!r}; its fields are {', '.join(kinds)}.")
    # What has a default may be missing: a checkpoint's config may be older than the field.
    required = {f.name for f in _declared(cls) if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - set(values)):
        raise JanusError(f"{where}.{missing[0]} is missing.")
    return cls(**{name: _from_plain(kinds[name], value, f"{where}.{name}") for name, value in values.items()})


def _without_none(kind: Any) -> Any:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kinds = [one for one in typing.get_args(kind) if one is not type(None)]
        return functools.reduce(operator.or_, kinds)
    return kind


def _dataclass_of(kinds: Any, value: Any) -> Any:
    """Of several dataclasses the one with most of these fields."""
    there = set(value) if isinstance(value, Mapping) else set()
    return max(typing.get_args(kinds), key=lambda kind: len(there & set(_fields(kind))))


def _one_of(choices: Any) -> str:
    return f"one of {', '.join(map(str, choices))}"


def _require(fits: bool, where: str, value: Any, wanted: str) -> None:
    if not fits:
        raise JanusError(f"{where} is {value!r:.80}; it must be {wanted}.")
