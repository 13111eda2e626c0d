"""Lists the fields of a config with their values and their documentation.

The documentation is the section "Attributes:" in the docstrings of the dataclasses.
"""

import dataclasses
import enum
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from janus_jax.training.config_dicts import best_match, field_types, without_none

_WIDTH = 100


def describe_config(cls: type, config: ConfigDict) -> str:
    """Returns all fields of a config, each with its value, its documentation and its choices.

    Args:
      cls: Dataclass from which the config was made (`config_dicts.to_config`).
      config: The config, possibly with changed values.
    """
    return "\n".join(_dataclass_lines(cls, config, "config"))


def field_docs(cls: type) -> dict[str, str]:
    """Returns the documentation of a dataclass's fields by name.

    The text "See `Name`." is replaced by the documentation of the same field of the class `Name`.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for name, text in _attributes(base.__dict__.get("__doc__") or ""):
            if reference := re.fullmatch(r"See `(\w+)`\.", text):
                text = field_docs(vars(sys.modules[base.__module__])[reference[1]])[name]
            docs[name] = text
    return docs


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    _, _, section = inspect.cleandoc(docstring).partition("\nAttributes:\n")
    # The section ends at the next line without indentation.
    section = re.split(r"\n(?=\S)", section)[0]
    for entry in re.split(r"\n(?=  \w)", f"\n{section}")[1:]:
        name, _, text = entry.partition(":")
        yield name.strip(), " ".join(text.split())


def _dataclass_lines(cls: type, config: Mapping[str, Any], where: str) -> Iterator[str]:
    kinds, docs = field_types(cls), field_docs(cls)
    for name in sorted(config, key=[*kinds, *config].index):
        yield from _field_lines(kinds.get(name), config[name], f"{where}.{name}", docs.get(name, ""))


def _field_lines(kind: Any, value: Any, where: str, doc: str) -> Iterator[str]:
    kind = without_none(kind)
    if not isinstance(value, ConfigDict):
        choices = _choices(kind)
        if choices and not all(re.search(rf'["`]?\b{choice}\b', doc) for choice in choices):
            doc += f" One of: {', '.join(choices)}."
        yield f"{where} = {value!r}"
        yield from _indented(doc)
        return
    if doc:
        yield from (where, *_indented(doc))
    if isinstance(kind, types.UnionType):
        kind = best_match(typing.get_args(kind), value)
    if dataclasses.is_dataclass(kind):
        yield from _dataclass_lines(typing.cast(type, kind), value, where)
        return
    # A tuple of dataclasses, or a mapping.
    arguments = typing.get_args(kind)
    item = arguments[0] if typing.get_origin(kind) is tuple else arguments[-1]
    for key in value:
        yield from _field_lines(item, value[key], f"{where}.{key}", "")


def _choices(kind: Any) -> list[str]:
    if typing.get_origin(kind) is Literal:
        return [str(choice) for choice in typing.get_args(kind)]
    return [choice.value for choice in kind] if isinstance(kind, type) and issubclass(kind, enum.Enum) else []


def _indented(doc: str) -> list[str]:
    return textwrap.wrap(doc, _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4, break_on_hyphens=False)
