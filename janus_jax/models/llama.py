"""Language model: a LLaMA decoder with grouped-query attention and a KV cache.

The architecture is that of DeepSeek-LLM (arXiv 2401.02954, §2.2): pre-RMSNorm, SwiGLU, rotary positions, no biases. The
decoder maps embeddings to hidden states; `backbone.Backbone` computes the embeddings and applies a head.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from janus_jax.config import WEIGHT_SCALE, Execution, LlamaConfig
from janus_jax.errors import JanusError
from janus_jax.models.attention import Angles, apply_rotary, attend, rotary_angles, update_cache
from janus_jax.models.layers import (
    Embedding,
    Linear,
    RMSNorm,
    repeated_block,
    stack_params,
    unstack_params,
)
from janus_jax.models.masks import Mask

LayerCache = tuple[Float[Array, "B KV S K"], Float[Array, "B KV S K"]]


class KVCache(NamedTuple):
    """Keys and values of earlier positions.

    The cache has S slots. A slot holds the key and the value of one position in every layer.

    Attributes:
      layers: One (keys, values) pair per layer. The arrays of the layers are not stacked, so that a loop on the device
        can update them without copies.
      segment_ids: Segment id of each slot; 0 for unwritten slots and padding.
      length: Number of written slots: one number for all sequences, or one for each sequence. Prompts are padded on the
        left, so the lengths are equal after prefill. A smaller length removes the last positions, because slots from
        the length on are written before they are read.
    """

    layers: tuple[LayerCache, ...]
    segment_ids: Int[Array, "B S"]
    length: Int[Array, ""] | Int[Array, " B"]

    @property
    def num_slots(self) -> int:
        """Number of slots, written or not."""
        return self.segment_ids.shape[1]


def grow_cache(cache: KVCache, slots: int) -> KVCache:
    """Returns the cache with unwritten slots added, so that it has `slots` slots.

    A decode step reads all slots, also unwritten ones, so a cache should not be much longer than its content.
    """
    more = slots - cache.num_slots
    layers = jax.tree.map(lambda kv: jnp.pad(kv, ((0, 0), (0, 0), (0, more), (0, 0))), cache.layers)
    return KVCache(layers, jnp.pad(cache.segment_ids, ((0, 0), (0, more))), cache.length)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped-query heads."""

    config: LlamaConfig
    execution: Execution

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], angles: Angles, mask: Mask, cache: LayerCache | None
    ) -> tuple[Float[Array, "B L D"], LayerCache]:
        c = self.config
        project = self._fused if self.execution.layers == "unrolled" else self._separate
        query, key, value = project(x)
        query, key = apply_rotary(query, angles), apply_rotary(key, angles)
        if cache is not None and mask.query_offset is not None:
            key = update_cache(cache[0], key, mask.query_offset)
            value = update_cache(cache[1], value, mask.query_offset)
        out = attend(query, key, value, mask, self.execution.attention).swapaxes(1, 2)
        axes = ("embed", "heads", "head_dim")
        y = Linear((c.width,), axes, self.execution, num_inputs=2, use_bias=False, name="out")(out)
        return y, (key, value)

    def _separate(self, x: Float[Array, "B L D"]) -> tuple[Array, Array, Array]:
        c = self.config

        def heads(name: str, count: int, axis: str) -> Float[Array, "B H L K"]:
            shape, axes = (count, c.head_dim), (axis, "head_dim", "embed")
            y = Linear(shape, axes, self.execution, use_bias=False, name=name)(x)
            return nn.with_logical_constraint(y.swapaxes(1, 2), ("batch", axis, "length", "head_dim"))

        return (
            heads("q", c.num_heads, "heads"),
            heads("k", c.num_kv_heads, "kv_heads"),
            heads("v", c.num_kv_heads, "kv_heads"),
        )

    def _fused(self, x: Float[Array, "B L D"]) -> tuple[Array, Array, Array]:
        c = self.config
        # Stores each key head with its query heads, so that tensor parallelism does not split such a group.
        shape = (c.num_kv_heads, c.num_heads // c.num_kv_heads + 2, c.head_dim)
        axes = ("kv_heads", None, "head_dim", "embed")
        y = Linear(shape, axes, self.execution, use_bias=False, name="qkv")(x)
        y = nn.with_logical_constraint(y.transpose(0, 2, 3, 1, 4), ("batch", "kv_heads", None, "length", "head_dim"))
        query = y[:, :, :-2].reshape(x.shape[0], c.num_heads, x.shape[1], c.head_dim)
        return query, y[:, :, -2], y[:, :, -1]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    config: LlamaConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        width, e = self.config.mlp_dim, self.execution
        if e.layers == "unrolled":
            # Stores the gate of each hidden unit with the unit, so that tensor parallelism does not separate them.
            fused = Linear((width, 2), ("mlp", None, "embed"), e, use_bias=False, name="gate_up")(x)
            gate, up = fused[..., 0], fused[..., 1]
        else:
            gate = Linear((width,), ("mlp", "embed"), e, use_bias=False, name="gate")(x)
            up = Linear((width,), ("mlp", "embed"), e, use_bias=False, name="up")(x)
        hidden = nn.with_logical_constraint(nn.silu(gate) * up, ("batch", "length", "mlp"))
        return Linear((self.config.width,), ("embed", "mlp"), e, use_bias=False, name="down")(hidden)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    config: LlamaConfig
    execution: Execution

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], angles: Angles, mask: Mask, cache: LayerCache | None, keep_kv: bool
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        c, e = self.config, self.execution
        normed = RMSNorm(c.rms_norm_eps, e, name="attn_norm")(x)
        y, kv = Attention(c, e, name="attn")(normed, angles, mask, cache)
        x = x + y
        x = x + SwiGLU(c, e, name="mlp")(RMSNorm(c.rms_norm_eps, e, name="mlp_norm")(x))
        x = nn.with_logical_constraint(x, ("batch", "length", "activation_embed"))
        return x, kv if keep_kv else None


class CapturingCarry(NamedTuple):
    """Carry of the scan over blocks that also holds the output of one block.

    Attributes:
      x: Hidden states.
      num_blocks: Number of blocks that have run.
      captured: Hidden states after the captured block; zeros until it has run.
    """

    x: Float[Array, "B L D"]
    num_blocks: Int[Array, ""]
    captured: Float[Array, "B L D"]


class CapturingBlock(Block):
    """Block that stores its output in `CapturingCarry.captured` if it is block number `capture_block`, from 1."""

    capture_block: int = 1

    def __call__(  # type: ignore[override]
        self, x: CapturingCarry, angles: Angles, mask: Mask, cache: LayerCache | None, keep_kv: bool
    ) -> tuple[CapturingCarry, LayerCache | None]:
        y, kv = super().__call__(x.x, angles, mask, cache, keep_kv)
        num_blocks = x.num_blocks + 1
        return CapturingCarry(y, num_blocks, jnp.where(num_blocks == self.capture_block, y, x.captured)), kv


class Llama(nn.Module):
    """Embedding table, transformer and text head.

    With scanned layers the parameters of the blocks are stacked under `layers`. With unrolled layers they are in
    `layers_0`, `layers_1`, ..., and matrices with the same input are fused to `qkv` and `gate_up`.

    Attributes:
      capture_block: Number, from 1, of the block whose output `call_and_capture` returns. It needs scanned layers. The
        scan carries this output, so the outputs of the other blocks are not stored.
    """

    config: LlamaConfig
    execution: Execution = Execution()
    capture_block: int | None = None

    def setup(self) -> None:
        c, e = self.config, self.execution
        self.embed = Embedding(c.vocab_size, c.width, ("vocab", "embed"), e)
        assert self.capture_block is None or e.layers == "scanned", "capture_block needs scanned layers"
        block: Any = Block if self.capture_block is None else CapturingBlock
        in_axes = (nn.broadcast, nn.broadcast, 0, nn.broadcast)
        block = repeated_block(block, c.depth, e, in_axes=in_axes, static_argnums=(5,))
        if self.capture_block is not None:
            self.layers: Any = block(c, e, capture_block=self.capture_block)
        else:
            self.layers = [block(c, e) for _ in range(c.depth)] if e.layers == "unrolled" else block(c, e)
        self.norm = RMSNorm(c.rms_norm_eps, e)
        self.head = Linear((c.vocab_size,), ("vocab", "embed"), e, use_bias=False, output_dtype=jnp.float32)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        positions: Int[Array, "B L"],
        segment_ids: Int[Array, "B L"],
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """Runs all blocks and the final norm.

        Args:
          x: Embeddings.
          positions: Rotary positions.
          segment_ids: Number of the example within the sequence, from 1; 0 at padding.
          cache: Keys and values of earlier positions; None if there are none.

        Returns:
          The hidden states, and the cache extended by the L new positions; None if no cache is given.
        """
        x, angles, mask = self._begin(x, positions, segment_ids)
        if cache is None:
            x, _ = self._blocks(x, angles, mask, None)
            return self.norm(x), None
        segments = update_cache(cache.segment_ids, segment_ids, cache.length, axis=1)
        mask = Mask(segment_ids, segments, causal=True, query_offset=cache.length)
        x, layers = self._blocks(x, angles, mask, cache.layers)
        return self.norm(x), KVCache(layers, segments, cache.length + segment_ids.shape[1])

    def call_and_capture(
        self, x: Float[Array, "B L D"], positions: Int[Array, "B L"], segment_ids: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"]]:
        """Returns the final hidden states, as `__call__` does, and the output of block `capture_block`."""
        x, angles, mask = self._begin(x, positions, segment_ids)
        after, _ = self.layers(self._carry(x), angles, mask, None, False)
        return self.norm(after.x), after.captured

    def prefill(
        self, x: Float[Array, "B L D"], positions: Int[Array, "B L"], segment_ids: Int[Array, "B L"], slots: int
    ) -> tuple[Float[Array, "B L D"], KVCache]:
        """Returns the hidden states of a prompt, and a cache of `slots` >= L slots that begins with the prompt.

        This is faster than `__call__` with an empty cache, because the prompt does not attend to unwritten slots.
        """
        x, angles, mask = self._begin(x, positions, segment_ids)
        x, layers = self._blocks(x, angles, mask, None, keep_kv=True)
        cache = KVCache(layers, segment_ids, jnp.asarray(x.shape[1], jnp.int32))
        return self.norm(x), grow_cache(cache, slots)

    def _begin(
        self, x: Float[Array, "B L D"], positions: Int[Array, "B L"], segment_ids: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B L D"], Angles, Mask]:
        """Returns the inputs of the blocks: embeddings in the dtype of the computation, rotary angles and a mask."""
        c, e = self.config, self.execution
        x = nn.with_logical_constraint(x.astype(e.dtype), ("batch", "length", "activation_embed"))
        return x, rotary_angles(positions, c.head_dim, c.rope_theta), Mask(segment_ids, segment_ids, causal=True)

    def _blocks(
        self,
        x: Float[Array, "B L D"],
        angles: Angles,
        mask: Mask,
        cache: tuple[LayerCache, ...] | None,
        keep_kv: bool = False,
    ) -> tuple[Float[Array, "B L D"], Any]:
        keep_kv = keep_kv or cache is not None
        if self.execution.layers == "unrolled":
            layers = []
            for i, block in enumerate(self.layers):
                x, kv = block(x, angles, mask, cache[i] if cache is not None else None, keep_kv)
                layers.append(kv)
            return x, tuple(layers)
        stacked = None if cache is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *cache)
        x, kv = self.layers(self._carry(x), angles, mask, stacked, keep_kv)
        x = x.x if isinstance(x, CapturingCarry) else x
        if not keep_kv:
            return x, None
        return x, tuple(jax.tree.map(lambda leaf, i=i: leaf[i], kv) for i in range(self.config.depth))

    def _carry(self, x: Float[Array, "B L D"]) -> Any:
        return x if self.capture_block is None else CapturingCarry(x, jnp.zeros((), jnp.int32), jnp.zeros_like(x))


_NORMS, _MATRICES = ("attn_norm", "mlp_norm"), ("q", "k", "v", "out", "gate", "up", "down")

PARAMS_PER_BLOCK = len(_NORMS) + len(_MATRICES)
"""Number of arrays in the parameter tree of one block before `fuse_block`."""

PARAMS_PER_QUANTIZED_BLOCK = len(_NORMS) + 2 * len(_MATRICES)
"""The same number if each matrix has scales."""


def fuse_block(block: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """Fuses the matrices `q`, `k`, `v` of a block to `qkv`, and `gate`, `up` to `gate_up`; their scales too.

    Args:
      block: Parameters of one block, numpy or jax arrays.
    """
    attn, mlp = block["attn"], block["mlp"]
    xp = np if isinstance(attn["q"]["weight"], np.ndarray) else jnp
    heads = (config.num_kv_heads, -1, config.head_dim)

    def fuse_heads(kind: str) -> Any:
        return xp.concatenate([(one := attn[name][kind]).reshape(*heads, *one.shape[2:]) for name in "qkv"], axis=1)

    def fuse_units(kind: str) -> Any:
        return xp.stack([mlp["gate"][kind], mlp["up"][kind]], axis=1)

    return {
        "attn_norm": block["attn_norm"],
        "attn": {"qkv": {kind: fuse_heads(kind) for kind in attn["q"]}, "out": attn["out"]},
        "mlp_norm": block["mlp_norm"],
        "mlp": {"gate_up": {kind: fuse_units(kind) for kind in mlp["gate"]}, "down": mlp["down"]},
    }


def split_block(block: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """Splits `qkv` and `gate_up` of a block: the inverse of `fuse_block`.

    Raises:
      JanusError: The weights are quantized.
    """
    attn, mlp = block["attn"], block["mlp"]
    if WEIGHT_SCALE in mlp["down"]:
        raise JanusError("The parameters are quantized, for sampling only; load the model without quantization.")
    qkv, gate_up = attn["qkv"]["weight"], mlp["gate_up"]["weight"]
    query = qkv[:, :-2].reshape(config.num_heads, config.head_dim, config.width)
    return {
        "attn_norm": block["attn_norm"],
        "attn": {
            "q": {"weight": query},
            "k": {"weight": qkv[:, -2]},
            "v": {"weight": qkv[:, -1]},
            "out": attn["out"],
        },
        "mlp_norm": block["mlp_norm"],
        "mlp": {"gate": {"weight": gate_up[:, 0]}, "up": {"weight": gate_up[:, 1]}, "down": mlp["down"]},
    }


def unstack_layers(llm: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """Converts the `llm` parameters to the layout of unrolled layers."""
    tree = unstack_params(llm, "layers", config.depth)
    return tree | {name: fuse_block(tree[name], config) for name in _blocks(config)}


def stack_layers(llm: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """Converts the `llm` parameters back to the layout of scanned layers."""
    blocks = {name: split_block(llm[name], config) for name in _blocks(config)}
    return stack_params({**llm, **blocks}, "layers", config.depth)


def _blocks(config: LlamaConfig) -> list[str]:
    return [f"layers_{i}" for i in range(config.depth)]
