"""Checks and parses the fields of configs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from janus_jax.errors import JanusError

# Far above any real model, but small enough that a network can be traced in seconds to list its parameters.
_LIMITS = {
    "depth": 1000,
    "encoder_depth": 64,
    "decoder_depth": 64,
    "num_res_blocks": 64,
    "width": 1 << 16,
    "head_dim": 1 << 16,
    "image_size": 1 << 14,
    "latent_size": 1 << 14,
    "kernel_size": 31,
}
_DEFAULT_LIMIT = (1 << 31) - 1


def check_fields(config: Any) -> None:
    """Checks fields against their types: sizes are positive integers, other numbers are finite and positive.

    Raises:
      JanusError: A field has an invalid value. The message names the field.
    """
    for f in dataclasses.fields(config):
        value, where = getattr(config, f.name), f"{type(config).__name__}.{f.name}"
        limit = _LIMITS.get(f.name, _DEFAULT_LIMIT)
        if f.type is int and not (_is_int(value) and 0 < value <= limit):
            raise JanusError(f"{where} is {value!r:.80}; it must be a whole number from 1 to {limit}.")
        if f.type is float and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise JanusError(f"{where} is {value!r:.80}; it must be a positive number.")
        if get_origin(f.type) is Literal and value not in get_args(f.type):
            raise JanusError(f"{where} is {value!r:.80}; it must be one of {', '.join(get_args(f.type))}.")
        if get_origin(f.type) is tuple and not (
            isinstance(value, tuple) and value and all(_is_int(item) and 0 < item <= 1024 for item in value)
        ):
            raise JanusError(f"{where} is {value!r:.80}; it must be a list of whole numbers from 1 to 1024.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def config_from_dict(cls: Any, values: Any, where: str = "") -> Any:
    """Returns the config for a dict made by `dataclasses.asdict`, possibly written to json and read again.

    Args:
      cls: Class of the config.
      where: Path to the values, for messages. Default: the name of the class.

    Raises:
      JanusError: A field is missing, unknown or has an invalid value. The message names the field.
    """
    where = where or cls.__name__
    if not isinstance(values, Mapping):
        raise JanusError(f"{where} is {values!r:.80}; it must be an object with the fields of {cls.__name__}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields)):
        raise JanusError(f"{where} has no field {unknown[0]!r}; its fields are {', '.join(fields)}.")
    if missing := sorted(set(fields) - set(values)):
        raise JanusError(f"{where}.{missing[0]} is missing.")
    arguments = {}
    for name, f in fields.items():
        value = values[name]
        if nested := _nested_class(f.type, value):
            value = config_from_dict(nested, value, f"{where}.{name}")
        elif get_origin(f.type) is tuple and isinstance(value, list):
            value = tuple(value)
        elif f.type is str and not isinstance(value, str):
            raise JanusError(f"{where}.{name} is {value!r:.80}; it must be text.")
        arguments[name] = value
    return cls(**arguments)


def _nested_class(kind: Any, value: Any) -> Any:
    """Returns the config class of a field's value; None if the value is not a config."""
    classes = [one for one in get_args(kind) or (kind,) if dataclasses.is_dataclass(one)]
    is_optional = type(None) in get_args(kind)
    return classes[0] if classes and not (is_optional and value is None) else None
