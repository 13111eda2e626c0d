"""Looks up registered objects by NAME, or by MODULE:NAME, which first imports the user's module MODULE."""

import importlib
from collections.abc import Mapping
from typing import TypeVar

from janus_jax.errors import JanusError

T = TypeVar("T")


def find_registered(registry: Mapping[str, T], name: str, field: str) -> T:
    """Returns a registered object. If the name is `MODULE:NAME`, imports the module first, which registers the object.

    Args:
      registry: Registered objects by name.
      name: `NAME` or `MODULE:NAME`.
      field: Flag or config field that contains the name, for messages.

    Raises:
      JanusError: The module cannot be imported, or no object has the name.
    """
    module, colon, short_name = name.rpartition(":")
    if colon:
        if not all(part.isidentifier() for part in module.split(".")):
            raise JanusError(f"{field} {name}: {module!r} is not the name of a module; give MODULE:NAME.")
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise JanusError(f"{field} {name}: {error}; give an importable module before the colon.") from error
    if short_name not in registry:
        raise JanusError(f"{field} {name} is unknown; use {', '.join(registry)}, or MODULE:NAME.")
    return registry[short_name]
