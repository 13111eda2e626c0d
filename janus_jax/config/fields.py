"""What all configs share: fields held against their declared kinds, and the way from json."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from janus_jax.errors import JanusError

# Far above any model, and far below what makes a loop over layers or an array of pixels exhaust the machine.
_MOST = {
    "depth": 1000,
    "encoder_depth": 1000,
    "decoder_depth": 1000,
    "num_res_blocks": 64,
    "image_size": 1 << 14,
    "latent_size": 1 << 14,
    "kernel_size": 1 << 10,
}
_MOST_OF_ALL = (1 << 31) - 1


def check_fields(config: Any) -> None:
    """Holds each field against its declared kind: sizes are whole and positive, other numbers finite and positive.

    Raises:
      JanusError: a field is none of what it may be; the message names it.
    """
    for f in dataclasses.fields(config):
        value, where = getattr(config, f.name), f"{type(config).__name__}.{f.name}"
        most = _MOST.get(f.name, _MOST_OF_ALL)
        if f.type is int and not (_is_whole(value) and 0 < value <= most):
            raise JanusError(f"{where} is {value!r:.80}; it must be a whole number from 1 to {most}.")
        if f.type is float and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise JanusError(f"{where} is {value!r:.80}; it must be a positive number.")
        if get_origin(f.type) is Literal and value not in get_args(f.type):
            raise JanusError(f"{where} is {value!r:.80}; it must be one of {', '.join(get_args(f.type))}.")
        if get_origin(f.type) is tuple and not (
            isinstance(value, tuple) and value and all(_is_whole(item) and 0 < item <= 1024 for item in value)
        ):
            raise JanusError(f"{where} is {value!r:.80}; it must be a list of whole numbers from 1 to 1024.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def config_from_dict(cls: Any, values: Any, where: str = "") -> Any:
    """The config of that class from plain values, as `dataclasses.asdict` and json make them.

    Args:
      where: the way to the values, for messages.

    Raises:
      JanusError: a field is missing, unknown or of the wrong kind; the message names it.
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
        if nested := _nested(f.type, value):
            value = config_from_dict(nested, value, f"{where}.{name}")
        elif get_origin(f.type) is tuple and isinstance(value, list):
            value = tuple(value)
        elif f.type is str and not isinstance(value, str):
            raise JanusError(f"{where}.{name} is {value!r:.80}; it must be text.")
        arguments[name] = value
    return cls(**arguments)


def _nested(kind: Any, value: Any) -> Any:
    """The config class of a field; None for a plain field, and for one that may be None and is."""
    kinds = [one for one in get_args(kind) or (kind,) if dataclasses.is_dataclass(one)]
    may_be_none = type(None) in get_args(kind)
    return kinds[0] if kinds and not (may_be_none and value is None) else None
