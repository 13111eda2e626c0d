"""Registers objects by name, and finds them by NAME in a registry, or by MODULE:NAME in the user's module MODULE."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

from janus_jax.errors import JanusError

T = TypeVar("T")


def register(registry: dict[str, Any], name: str, item: object, kind: str) -> None:
    """Adds an object to a registry.

    Args:
      registry: Registered objects by name.
      name: Name of the object.
      item: The object.
      kind: Kind of the objects, such as "reward", for messages.

    Raises:
      JanusError: An object of this name is registered already.
    """
    if name in registry:
        raise JanusError(f"A {kind} named {name} is registered already; choose another name.")
    registry[name] = item


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
        _import(module, f"{field} {name}")
    if short_name not in registry:
        raise JanusError(f"{field} {name} is unknown; use {', '.join(registry)}, or MODULE:NAME.")
    return registry[short_name]


def find_registered_or_attribute(registry: Mapping[str, T], name: str, field: str) -> T | Any:
    """Returns a registered object, or the attribute NAME of MODULE if the registry has no object of this name.

    See `find_registered`.
    """
    module, colon, short_name = name.rpartition(":")
    imported = _import(module, f"{field} {name}") if colon else None
    if short_name not in registry and hasattr(imported, short_name):
        return getattr(imported, short_name)
    return find_registered(registry, name, field)


def find_attribute(name: str, field: str) -> Any:
    """Returns the object `MODULE:NAME`.

    Args:
      name: `MODULE:NAME`.
      field: Flag or config field that contains the name, for messages.

    Raises:
      JanusError: The module cannot be imported, or it has no such object.
    """
    module_name, _, attribute = name.rpartition(":")
    module = _import(module_name, f"{field} {name}")
    if not hasattr(module, attribute):
        raise JanusError(f"{field} {name}: the module {module_name} has no {attribute!r}; give MODULE:NAME.")
    return getattr(module, attribute)


def _import(module: str, where: str) -> ModuleType:
    if not all(part.isidentifier() for part in module.split(".")):
        raise JanusError(f"{where}: {module!r} is not the name of a module; give MODULE:NAME.")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise JanusError(f"{where}: {error}; give an importable module before the colon.") from error
