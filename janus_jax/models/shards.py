"""What each shard of a mesh does by itself where the compiler would split it otherwise. Axes go by logical names."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec


def spec(*axes: str | None) -> PartitionSpec:
    """Where axes of these logical names lie on the mesh of the context."""
    return nn.logical_to_mesh_axes(axes) or PartitionSpec()


def by_shards(function: Callable[..., jax.Array], x: jax.Array, *whole: jax.Array) -> jax.Array:
    """What a function makes of rows that have nothing to do with each other, on each shard of the batch by itself.

    For operations that the compiler would split otherwise, and send all rows for: a depthwise convolution by channels,
    as its kernel lies.

    Args:
      x: its first axis is the batch's.
      whole: what all shards read; its gradient is summed over them.
    """
    mesh, rows = jax.sharding.get_abstract_mesh(), spec("batch")
    names = () if mesh.empty else rows[0] or ()
    shards = math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))
    if shards == 1 or x.shape[0] % shards:
        return function(x, *whole)
    mapped = jax.shard_map(function, in_specs=(rows, *(PartitionSpec(),) * len(whole)), out_specs=rows)
    result: jax.Array = mapped(x, *whole)
    return result
