"""Selects parameters by path, such as "llm/layers/attn/q/weight", with patterns such as "llm/*" or "*/bias"."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params


def path_name(path: tuple[Any, ...]) -> str:
    """Returns the name of a leaf, given its path from a function of `jax.tree_util`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Returns whether a pattern matches the whole name. `*` matches any characters, including slashes."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Maps `function(name, leaf, *leaves)` over a tree. Boxed leaves (with logical axis names) are passed boxed."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest, is_leaf=is_boxed
    )


def is_boxed(leaf: Any) -> bool:
    """Returns whether a leaf is a box that carries logical axis names."""
    return isinstance(leaf, nn.meta.AxisMetadata)


def unbox(tree: Any) -> Any:
    """Removes boxes. Unlike `nn.unbox` it adds no sharding constraint, so it accepts shapes inside a mesh context."""
    return jax.tree.map(lambda leaf: leaf.value if is_boxed(leaf) else leaf, tree, is_leaf=is_boxed)


def partition(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """Splits a parameter tree before the gradient is taken, so that frozen parameters have no gradient or moments.

    Blocks are stacked, so a pattern selects a matrix of all blocks.

    Args:
      params: Nested dicts of arrays, shapes, boxes or shardings.
      patterns: Patterns of the trained parameters, such as `llm/*`, `*_adaptor/*` or `llm/layers/attn/[qv]/weight`.

    Returns:
      Trained and frozen parameters, both without empty branches.

    Raises:
      JanusError: A pattern matches no parameter.
    """
    leaves: Mapping[str, Any] = flatten_dict(params, sep="/")
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in leaves):
            raise JanusError(
                f"`trained` has the pattern {pattern!r}, which matches no parameter; "
                f"the parts of the model are {', '.join(f'{part}/*' for part in sorted(params))}."
            )
    trained = {name: leaf for name, leaf in leaves.items() if matches(name, patterns)}
    frozen = {name: leaf for name, leaf in leaves.items() if name not in trained}
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def merge(trained: Params, frozen: Params) -> Params:
    """Merges two trees. Inverse of `partition`."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))
