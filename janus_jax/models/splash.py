"""Splash attention: a TPU kernel that skips masked blocks and does not store the scores.

The kernel is part of jax (`jax.experimental.pallas.ops.tpu.splash_attention`) and computes all heads of one sequence.
This module applies it to all sequences of a batch and, under a mesh, on every device to the sequences and heads of this
device. On other platforms than TPUs the kernel is interpreted, for tests.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from janus_jax.models.masks import Mask
from janus_jax.models.target_platform import current_platform

# Lanes of a TPU's vector unit. Block sizes must be multiples of it.
LANES = 128
MAX_BLOCK = 512
_BLOCK_SIZES = (
    *("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"),
    *("block_kv_dkv_compute", "block_q_dq", "block_kv_dq"),
)


def is_supported(query: Float[Array, "B H T K"], key: Float[Array, "B KV S K"], mask: Mask) -> bool:
    """Returns whether the kernel supports the arguments.

    Queries and keys must be the same positions, and length and head dimension must be multiples of `LANES`.
    """
    return (
        mask.query_offset is None
        and query.shape[2] == key.shape[2]
        and query.shape[2] % LANES == 0
        and query.shape[3] % LANES == 0
    )


def splash_attention(
    query: Float[Array, "B H L K"], key: Float[Array, "B KV L K"], value: Float[Array, "B KV L K"], mask: Mask
) -> Float[Array, "B H L K"]:
    """Returns the result of `attention.attend` for arguments that `is_supported` accepts."""
    query = query * query.shape[-1] ** -0.5
    segments = (mask.query_segments, mask.key_segments)
    mesh = jax.sharding.get_abstract_mesh()
    attend = functools.partial(_attend_sequences, causal=mask.causal)
    if mesh.empty:
        return attend(query, key, value, segments)
    heads = _spec("batch", "heads", None, None)
    kv_heads = _spec("batch", "kv_heads", None, None)
    # check_vma requires that every operation declares how its result varies over the mesh; Pallas calls do not.
    sharded = jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(heads, kv_heads, kv_heads, _spec("batch", None)),
        out_specs=heads,
        check_vma=False,
    )
    return sharded(query, key, value, segments)


def _spec(*axes: str | None) -> PartitionSpec:
    return nn.logical_to_mesh_axes(axes) or PartitionSpec()


def _attend_sequences(
    query: Float[Array, "B H L K"],
    key: Float[Array, "B KV L K"],
    value: Float[Array, "B KV L K"],
    segments: tuple[Int[Array, "B L"] | None, Int[Array, "B L"] | None],
    causal: bool,
) -> Float[Array, "B H L K"]:
    heads, length = query.shape[1:3]
    block = next(size for size in (MAX_BLOCK, MAX_BLOCK // 2, LANES) if length % size == 0)
    head_mask = masks.CausalMask((length, length)) if causal else masks.FullMask((length, length))
    block_sizes: Any = dict.fromkeys(_BLOCK_SIZES, block)
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([head_mask] * heads),
        block_sizes=kernel.BlockSizes(**block_sizes),
        head_shards=1,
        q_seq_shards=1,
        interpret=current_platform() != "tpu",
    )
    queries, keys = segments
    if queries is None or keys is None:
        return jax.vmap(attend)(query, key, value)
    return jax.vmap(lambda q, k, v, s, t: attend(q, k, v, kernel.SegmentIds(s, t)))(query, key, value, queries, keys)
