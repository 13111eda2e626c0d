"""Attention, behind one function, and the kernels that compute it; `masks` says which places attend to which.

Heads come before places (B H L K), the order in which batched products, the decoding cache and the splash kernel want
them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from janus_jax.config import AttentionKernel
from janus_jax.models.layers import product
from janus_jax.models.masks import EVERYTHING, Mask
from janus_jax.models.target_platform import current_platform

# Four blocks of queries, each with the keys up to its end, do 5/8 of the whole square's work.
CAUSAL_BLOCKS = 4
CAUSAL_BLOCKS_FROM = 256


def attend(
    query: Float[Array, "B H T K"],
    key: Float[Array, "B KV S K"],
    value: Float[Array, "B KV S K"],
    mask: Mask = EVERYTHING,
    kernel: AttentionKernel = "xla",
) -> Float[Array, "B H T K"]:
    """softmax(q k^T / sqrt(K)) v, with H a multiple of KV (grouped queries), the softmax in float32."""
    return _KERNELS[kernel](query, key, value, mask)


def _xla(
    query: Float[Array, "B H T K"], key: Float[Array, "B KV S K"], value: Float[Array, "B KV S K"], mask: Mask
) -> Float[Array, "B H T K"]:
    length = query.shape[2]
    if not mask.causal or length < CAUSAL_BLOCKS_FROM:
        return _scores_and_mix(query, key, value, mask)
    # What lies behind a block of queries is not computed to be masked. Where queries continue a cache, at most all that
    # is not theirs comes before them.
    before = key.shape[2] - length
    bounds = [length * i // CAUSAL_BLOCKS for i in range(CAUSAL_BLOCKS + 1)]
    blocks = []
    for start, stop in itertools.pairwise(bounds):
        keys = before + stop
        parts = query[:, :, start:stop], key[:, :, :keys], value[:, :, :keys]
        blocks.append(_scores_and_mix(*parts, mask.block(start, stop, keys)))
    return jnp.concatenate(blocks, axis=2)


def _scores_and_mix(
    query: Float[Array, "B H T K"], key: Float[Array, "B KV S K"], value: Float[Array, "B KV S K"], mask: Mask
) -> Float[Array, "B H T K"]:
    batch, heads, num_queries, head_dim = query.shape
    kv_heads, num_keys = key.shape[1:3]
    # Grouped queries share a key: laid along T they stay one product, with nothing repeated.
    grouped = (query * head_dim**-0.5).reshape(batch, kv_heads, -1, head_dim)
    scores = product(grouped, key, (((3,), (3,)), ((0, 1), (0, 1))), jnp.float32)
    allowed = mask.dense(num_queries, num_keys)
    if allowed is not None:
        scores = scores.reshape(batch, heads, num_queries, num_keys)
        # Added, which the product's kernel takes in, and finite, so that a row that attends to nothing has no NaN.
        scores += jnp.where(allowed, 0, jnp.finfo(jnp.float32).min)
        scores = scores.reshape(*grouped.shape[:3], num_keys)
    # The softmax, divided by its sum only after the product: a pass over K numbers a query and not over S.
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = product(weights.astype(value.dtype), value, (((3,), (2,)), ((0, 1), (0, 1))), jnp.float32)
    out = out / weights.sum(axis=-1, keepdims=True)
    return out.astype(value.dtype).reshape(query.shape)


def _cudnn(
    query: Float[Array, "B H T K"], key: Float[Array, "B KV S K"], value: Float[Array, "B KV S K"], mask: Mask
) -> Float[Array, "B H T K"]:
    # cuDNN's fused kernel has no float32, wants heads of 8 to 128 numbers and, for gradients, an even number of places.
    (length, head_dim), slots = query.shape[2:], key.shape[2]
    fits = query.dtype != jnp.float32 and head_dim % 8 == 0 and head_dim <= 128 and length % 2 == slots % 2 == 0
    if not fits or current_platform() != "gpu":
        return _xla(query, key, value, mask)
    # An order that the kernel knows of spares it half of the work; that of queries which continue a cache it does not.
    ordered = mask.causal and mask.query_offset is None and length == slots
    mask = dataclasses.replace(mask, causal=mask.causal and not ordered)
    to_cudnn = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    out = jax.nn.dot_product_attention(
        to_cudnn(query),
        to_cudnn(key),
        to_cudnn(value),
        mask=mask.dense(length, slots),
        is_causal=ordered,
        implementation="cudnn",
    )
    return jnp.swapaxes(out, 1, 2)


def _splash(
    query: Float[Array, "B H T K"], key: Float[Array, "B KV S K"], value: Float[Array, "B KV S K"], mask: Mask
) -> Float[Array, "B H T K"]:
    from janus_jax.models.splash import fits, splash_attention

    if not fits(query, key, mask):
        return _xla(query, key, value, mask)
    return splash_attention(query, key, value, mask)


_KERNELS: dict[AttentionKernel, Callable[[Array, Array, Array, Mask], Array]] = {
    "xla": _xla,
    "cudnn": _cudnn,
    "splash": _splash,
}


def rotary_angles(
    positions: Int[Array, "B L"], head_dim: int, theta: float
) -> tuple[Float[Array, "B 1 L K2"], Float[Array, "B 1 L K2"]]:
    """Cosine and sine of each place's rotation, float32 (RoPE, arXiv 2104.09864, §3.2.2)."""
    # By numpy: an accelerator's power function is not exact, and the angles are what positions are told by.
    frequencies = np.float32(theta) ** (-np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B H L K"], angles: tuple[Float[Array, "B 1 L K2"], Float[Array, "B 1 L K2"]]
) -> Float[Array, "B H L K"]:
    """Rotates dimension i together with i + K/2: the pairing of the released LLaMA files, not RoPE's own 2i, 2i+1."""
    cos, sin = angles
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    # A flip and not a concatenation of two results, which a CPU would compute number by number.
    rotated = halves * cos[..., None, :] + jnp.flip(halves, -2) * jnp.stack([-sin, sin], axis=-2)
    return rotated.reshape(x.shape).astype(x.dtype)


def update_slots(
    cache: Float[Array, "B KV S K"], new: Float[Array, "B KV T K"], start: Int[Array, ""]
) -> Float[Array, "B KV S K"]:
    """Writes T new places into the cache from slot `start` on."""
    return lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), start, axis=2)
