"""Parameters by name: "llm/layers/attn/q/weight", and patterns such as "llm/*" or "*/bias"."""

import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax


def name_of(path: tuple[Any, ...]) -> str:
    """The name of a leaf whose path a function of `jax.tree_util` gives."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns fits the whole name. `*` fits anything, slashes too."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`function(name, leaf, *leaves)` over a tree; a leaf in a box with logical names is passed with its box."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(name_of(path), *leaves), tree, *rest, is_leaf=is_boxed
    )


def is_boxed(leaf: Any) -> bool:
    """Whether a leaf is a box that carries the logical names of its axes."""
    return isinstance(leaf, nn.meta.AxisMetadata)


def unboxed(tree: Any) -> Any:
    """The tree without boxes. Unlike `nn.unbox` it constrains nothing, and so takes shapes within a mesh too."""
    return jax.tree.map(lambda leaf: leaf.value if is_boxed(leaf) else leaf, tree, is_leaf=is_boxed)
