"""The language model: a LLaMA decoder over embeddings, with grouped queries and a key-value cache.

DeepSeek-LLM (arXiv 2401.02954, §2.2): pre-RMSNorm, SwiGLU, rotary positions, no biases. Embeddings come in and hidden
states go out; what an embedding stands for and which head reads a hidden state is `models.janus`' business.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from janus_jax.config import Execution, LlamaConfig, RematPolicy
from janus_jax.models.attention import attend, rotary_angles, rotate, update_slots
from janus_jax.models.layers import Embedding, Linear, RMSNorm, stacked, unstacked
from janus_jax.models.masks import Mask

Angles = tuple[Float[Array, "B 1 L K2"], Float[Array, "B 1 L K2"]]
LayerCache = tuple[Float[Array, "B KV S K"], Float[Array, "B KV S K"]]


class KVCache(NamedTuple):
    """Keys and values of the places so far, S slots of them.

    Attributes:
      layers: one (keys, values) pair a layer. A tuple of arrays and not one stack, so that a loop on the device can
        update each in place.
      segment_ids: segment of each slot; 0 where nothing is written yet or padding was.
      length: number of slots written, the same for all rows (prompts are padded on the left).
    """

    layers: tuple[LayerCache, ...]
    segment_ids: Int[Array, "B S"]
    length: Int[Array, ""]


def grow_cache(cache: KVCache, slots: int) -> KVCache:
    """The cache with unwritten slots added, `slots` in all.

    A decoding step reads every slot, written or not, so a cache is best kept little longer than what is in it.
    """
    more = slots - cache.segment_ids.shape[1]
    layers = jax.tree.map(lambda kv: jnp.pad(kv, ((0, 0), (0, 0), (0, more), (0, 0))), cache.layers)
    return KVCache(layers, jnp.pad(cache.segment_ids, ((0, 0), (0, more))), cache.length)


def remat_policy(name: RematPolicy) -> Any:
    """The `policy` argument of `jax.checkpoint` for a policy's name; see `Execution.remat`."""
    policies = jax.checkpoint_policies
    return {"dots": policies.dots_with_no_batch_dims_saveable, "full": policies.nothing_saveable}[name]


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped queries."""

    config: LlamaConfig
    execution: Execution

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], angles: Angles, mask: Mask, cache: LayerCache | None
    ) -> tuple[Float[Array, "B L D"], LayerCache]:
        c = self.config
        project = self._fused if self.execution.layers == "unrolled" else self._separate
        query, key, value = project(x)
        query, key = rotate(query, angles), rotate(key, angles)
        if cache is not None and mask.query_offset is not None:
            key = update_slots(cache[0], key, mask.query_offset)
            value = update_slots(cache[1], value, mask.query_offset)
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
        # Each key head lies with its queries, so that tensor parallelism splits the product between heads.
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
            # Each gate lies with its unit, so that tensor parallelism splits the product between units.
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


class Tapped(NamedTuple):
    """What goes from block to block where the states after one of them are wanted besides.

    Attributes:
      x: the states.
      number: of blocks so far.
      taken: the states after the wanted block, once it is behind.
    """

    x: Float[Array, "B L D"]
    number: Int[Array, ""]
    taken: Float[Array, "B L D"]


class TappedBlock(Block):
    """A block that keeps its result where it is the wanted one, counted from 1."""

    wanted: int = 1

    def __call__(  # type: ignore[override]
        self, x: Tapped, angles: Angles, mask: Mask, cache: LayerCache | None, keep_kv: bool
    ) -> tuple[Tapped, LayerCache | None]:
        y, kv = super().__call__(x.x, angles, mask, cache, keep_kv)
        number = x.number + 1
        return Tapped(y, number, jnp.where(number == self.wanted, y, x.taken)), kv


class Llama(nn.Module):
    """Embedding table, transformer and text head.

    The parameters of its blocks are stacked under `layers`. With `execution.layers` "unrolled" they lie in `layers_0`,
    `layers_1`, ..., and matrices that read the same input are one: `qkv` and `gate_up`.

    Attributes:
      tap: the block, counted from 1, whose states `tapped` gives; needs `execution.layers` "scanned". The loop over the
        blocks carries them along, so that those of no other block are kept.
    """

    config: LlamaConfig
    execution: Execution = Execution()
    tap: int | None = None

    def setup(self) -> None:
        c, e = self.config, self.execution
        self.embed = Embedding(c.vocab_size, c.width, ("vocab", "embed"), e)
        assert self.tap is None or e.layers == "scanned", "states are tapped from scanned blocks alone"
        block: Any = Block if self.tap is None else TappedBlock
        if e.remat != "none":
            # Within a scan nothing can be shared with the forward pass, so that nothing has to prevent it.
            block = nn.remat(
                block, policy=remat_policy(e.remat), prevent_cse=e.layers == "unrolled", static_argnums=(5,)
            )
        if e.layers == "scanned":
            block = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast, 0, nn.broadcast),
                length=c.depth,
                unroll=e.scan_unroll,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
        if self.tap is not None:
            self.layers: Any = block(c, e, wanted=self.tap)
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
        """Hidden states after the last norm.

        Args:
          x: embeddings.
          positions: rotary positions.
          segment_ids: samples of a row, 0 at padding.
          cache: earlier places, which the new ones attend to and are appended to.

        Returns:
          The hidden states and, where a cache was given, the cache with the L new places.
        """
        x, angles, mask = self._begin(x, positions, segment_ids)
        if cache is None:
            x, _ = self._blocks(x, angles, mask, None)
            return self.norm(x), None
        segments = jax.lax.dynamic_update_slice_in_dim(cache.segment_ids, segment_ids, cache.length, axis=1)
        mask = Mask(segment_ids, segments, causal=True, query_offset=cache.length)
        x, layers = self._blocks(x, angles, mask, cache.layers)
        return self.norm(x), KVCache(layers, segments, cache.length + segment_ids.shape[1])

    def tapped(
        self, x: Float[Array, "B L D"], positions: Int[Array, "B L"], segment_ids: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"]]:
        """Hidden states after the last norm, as `__call__` gives them, and those after block `tap`, not normed."""
        x, angles, mask = self._begin(x, positions, segment_ids)
        after, _ = self.layers(self._carry(x), angles, mask, None, False)
        return self.norm(after.x), after.taken

    def prefill(
        self, x: Float[Array, "B L D"], positions: Int[Array, "B L"], segment_ids: Int[Array, "B L"], slots: int
    ) -> tuple[Float[Array, "B L D"], KVCache]:
        """Hidden states of a prompt, and a cache of `slots` >= L slots that begins with it.

        Faster than `__call__` with an empty cache: the prompt attends to itself, not to the empty slots.
        """
        x, angles, mask = self._begin(x, positions, segment_ids)
        x, layers = self._blocks(x, angles, mask, None, keep_kv=True)
        cache = KVCache(layers, segment_ids, jnp.asarray(x.shape[1], jnp.int32))
        return self.norm(x), grow_cache(cache, slots)

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Text logits, float32."""
        return self.head(hidden)

    def _begin(
        self, x: Float[Array, "B L D"], positions: Int[Array, "B L"], segment_ids: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B L D"], Angles, Mask]:
        """Embeddings as the blocks read them, the angles of their places, and which of these attend to which."""
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
        in_one = None if cache is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *cache)
        x, kv = self.layers(self._carry(x), angles, mask, in_one, keep_kv)
        x = x.x if isinstance(x, Tapped) else x
        if not keep_kv:
            return x, None
        return x, tuple(jax.tree.map(lambda leaf, i=i: leaf[i], kv) for i in range(self.config.depth))

    def _carry(self, x: Float[Array, "B L D"]) -> Any:
        return x if self.tap is None else Tapped(x, jnp.zeros((), jnp.int32), jnp.zeros_like(x))


LEAVES_OF_BLOCK = len(("attn_norm", "q", "k", "v", "out", "mlp_norm", "gate", "up", "down"))
"""Arrays in the tree of one block, before it is fused."""


def fuse_block(block: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """One block's parameters with `q`, `k`, `v` as `qkv` and `gate`, `up` as `gate_up`; numpy or jax arrays."""
    attn, mlp = block["attn"], block["mlp"]
    xp = np if isinstance(attn["q"]["weight"], np.ndarray) else jnp
    grouped = (config.num_kv_heads, -1, config.head_dim, config.width)
    qkv = xp.concatenate([attn[name]["weight"].reshape(grouped) for name in "qkv"], axis=1)
    gate_up = xp.stack([mlp["gate"]["weight"], mlp["up"]["weight"]], axis=1)
    return {
        "attn_norm": block["attn_norm"],
        "attn": {"qkv": {"weight": qkv}, "out": attn["out"]},
        "mlp_norm": block["mlp_norm"],
        "mlp": {"gate_up": {"weight": gate_up}, "down": mlp["down"]},
    }


def split_block(block: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """The inverse of `fuse_block`."""
    attn, mlp = block["attn"], block["mlp"]
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
    """The `llm` parameters in the form that `Execution.layers` "unrolled" reads."""
    tree = unstacked(llm, "layers", config.depth)
    return tree | {name: fuse_block(tree[name], config) for name in _blocks(config)}


def stack_layers(llm: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """The inverse of `unstack_layers`: the form of training and of checkpoints."""
    blocks = {name: split_block(llm[name], config) for name in _blocks(config)}
    return stacked({**llm, **blocks}, "layers", config.depth)


def _blocks(config: LlamaConfig) -> list[str]:
    return [f"layers_{i}" for i in range(config.depth)]
