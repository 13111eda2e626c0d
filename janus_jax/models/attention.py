"""Attention with a choice of kernels, rotary positions and the update of a KV cache.

Heads precede positions (B H L K), as batched products, the KV cache and the splash kernel need. `masks` defines which
positions a query attends to.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import lax
from jaxtyping import Array, Float, Int

from janus_jax.config import AttentionKernel
from janus_jax.models.layers import product
from janus_jax.models.masks import UNMASKED, Mask
from janus_jax.models.target_platform import current_platform, default_attention

Queries = Float[Array, "B H T K"]
Keys = Float[Array, "B KV S K"]
Angles = tuple[Float[Array, "B 1 L K2"], Float[Array, "B 1 L K2"]]

# Causal attention divides long sequences into blocks of queries, each with the keys up to its end. Four blocks compute
# 5/8 of all scores.
CAUSAL_BLOCKS = 4
CAUSAL_BLOCKS_MIN_LENGTH = 256


# With fewer queries, reading the keys and values takes most of the time, which no kernel avoids.
AUTO_MIN_QUERIES = 64


def attend(query: Queries, key: Keys, value: Keys, mask: Mask = UNMASKED, kernel: AttentionKernel = "xla") -> Queries:
    """Returns softmax(q k^T / sqrt(K)) v, with the softmax in float32.

    H is a multiple of KV (grouped-query attention). If the kernel does not support the arguments, "xla" replaces it,
    which is logged the first time. "auto" stands for `default_attention`, and for "xla" if there are few queries.
    """
    if kernel == "auto":
        kernel = default_attention() if query.shape[2] >= AUTO_MIN_QUERIES else "xla"
    return _KERNELS[kernel](query, key, value, mask)


@functools.cache
def _log_fallback(kernel: AttentionKernel) -> None:
    # Cached: one line per process, not one per shape.
    logging.info("The attention kernel %s lacks some shapes or dtypes of this model; xla computes these.", kernel)


def _xla(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:
    length = query.shape[2]
    if not mask.causal or length < CAUSAL_BLOCKS_MIN_LENGTH:
        return _dense_attention(query, key, value, mask)
    # Skips the keys after each block of queries. If the queries continue a cache, the cached keys precede all of them.
    earlier_keys = key.shape[2] - length
    bounds = [length * i // CAUSAL_BLOCKS for i in range(CAUSAL_BLOCKS + 1)]
    blocks = []
    for start, stop in itertools.pairwise(bounds):
        num_keys = earlier_keys + stop
        operands = query[:, :, start:stop], key[:, :, :num_keys], value[:, :, :num_keys]
        blocks.append(_dense_attention(*operands, mask.block(start, stop, num_keys)))
    return jnp.concatenate(blocks, axis=2)


def _dense_attention(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:
    batch, heads, num_queries, head_dim = query.shape
    kv_heads, num_keys = key.shape[1:3]
    # Concatenates the query heads that share a key head along T, for one product without repeated keys.
    grouped = (query * head_dim**-0.5).reshape(batch, kv_heads, -1, head_dim)
    scores = product(grouped, key, (((3,), (3,)), ((0, 1), (0, 1))), jnp.float32)
    allowed = mask.dense(num_queries, num_keys)
    if allowed is not None:
        scores = scores.reshape(batch, heads, num_queries, num_keys)
        # XLA fuses an added bias into the product. A finite bias gives no NaN for a query without any key.
        scores += jnp.where(allowed, 0, jnp.finfo(jnp.float32).min)
        scores = scores.reshape(*grouped.shape[:3], num_keys)
    # Divides by the sum of the weights after the product: K divisions per query instead of S.
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = product(weights.astype(value.dtype), value, (((3,), (2,)), ((0, 1), (0, 1))), jnp.float32)
    out = out / weights.sum(axis=-1, keepdims=True)
    return out.astype(value.dtype).reshape(query.shape)


def _cudnn(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:
    # cuDNN's fused kernel does not support float32. It needs head dims that are multiples of 8 up to 128 and, for
    # gradients, even lengths.
    (length, head_dim), slots = query.shape[2:], key.shape[2]
    even_lengths = length % 2 == slots % 2 == 0
    is_supported = query.dtype != jnp.float32 and head_dim % 8 == 0 and head_dim <= 128 and even_lengths
    if not is_supported or current_platform() != "gpu":
        _log_fallback("cudnn")
        return _xla(query, key, value, mask)
    # With `is_causal` the kernel skips half of the work, but it assumes that queries and keys are the same positions.
    is_causal = mask.causal and mask.query_offset is None and length == slots
    mask = dataclasses.replace(mask, causal=mask.causal and not is_causal)
    to_cudnn = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    out = jax.nn.dot_product_attention(
        to_cudnn(query),
        to_cudnn(key),
        to_cudnn(value),
        mask=mask.dense(length, slots),
        is_causal=is_causal,
        implementation="cudnn",
    )
    return jnp.swapaxes(out, 1, 2)


def _splash(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:
    from janus_jax.models.splash import is_supported, splash_attention

    if not is_supported(query, key, mask):
        _log_fallback("splash")
        return _xla(query, key, value, mask)
    return splash_attention(query, key, value, mask)


_KERNELS: Mapping[AttentionKernel, Callable[[Array, Array, Array, Mask], Array]] = {
    "xla": _xla,
    "cudnn": _cudnn,
    "splash": _splash,
}


def rotary_angles(positions: Int[Array, "B L"], head_dim: int, theta: float) -> Angles:
    """Returns the cosines and the sines of the rotary angles of each position (RoPE, arXiv 2104.09864, §3.2.2).

    They are float32.
    """
    # Uses numpy for the frequencies, because the power function of accelerators is inexact.
    frequencies = np.float32(theta) ** (-np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x: Float[Array, "B H L K"], angles: Angles) -> Float[Array, "B H L K"]:
    """Rotates queries or keys by the angles of their positions.

    Dimension i is paired with dimension i + K/2, as in the released LLaMA weights. The RoPE paper pairs 2i with 2i + 1.
    """
    cos, sin = angles
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    # Flips the halves, because XLA's CPU backend does not vectorize a concatenation.
    rotated = halves * cos[..., None, :] + jnp.flip(halves, -2) * jnp.stack([-sin, sin], axis=-2)
    return rotated.reshape(x.shape).astype(x.dtype)


def update_cache(cache: Array, new: Array, start: Int[Array, "..."], axis: int = 2) -> Array:
    """Returns the cache with new entries, written to the slots from `start` on.

    Args:
      cache: Keys or values (B KV S K), or segment ids (B S).
      new: New entries, T along the axis of the slots.
      start: First slot to write: one number, or one for each of the B sequences.
      axis: Axis of the slots.
    """
    new = new.astype(cache.dtype)
    if start.ndim == 0:
        return lax.dynamic_update_slice_in_dim(cache, new, start, axis)
    write = functools.partial(lax.dynamic_update_slice_in_dim, axis=axis - 1)
    return jax.vmap(write)(cache, new, start)
