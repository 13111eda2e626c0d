"""Context of one conversation: a KV cache that is extended by text and images, and rewound."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from janus_jax.batch import NO_IMAGE, PADDING_SEGMENT, Batch
from janus_jax.generation.decode import KV_AXES, ContextEnd
from janus_jax.generation.padding import CACHE_STEP, bucket_length, round_up
from janus_jax.models.backbone import Params, apply
from janus_jax.models.janus import Janus
from janus_jax.models.llama import KVCache, grow_cache
from janus_jax.processing import Processor, TokenSequence
from janus_jax.sharding import batch_sharding, num_data_shards

Ids = Int[np.ndarray, "M N"]
"""Image tokens of the target images of a token sequence."""


class Context(NamedTuple):
    """Keys and values of a conversation. All sequences of the cache are equal.

    Attributes:
      cache: The cache. It starts with padding.
      padding: Number of slots of padding.
      length: Number of positions of the conversation in the cache.
    """

    cache: KVCache
    padding: int
    length: int

    @property
    def used(self) -> int:
        """Number of written slots."""
        return self.padding + self.length

    def rewound(self, length: int) -> "Context":
        """Returns the context of the first `length` positions."""
        cache = self.cache._replace(length=jnp.asarray(self.padding + length, jnp.int32))
        return self._replace(cache=cache, length=length)

    def grown(self, slots: int) -> "Context":
        """Returns the context with a cache of at least `slots` slots."""
        if slots <= self.cache.num_slots:
            return self
        return self._replace(cache=_grow(self.cache, round_up(slots, CACHE_STEP)))


@dataclass(frozen=True, eq=False)
class ContextReader:
    """Runs a model on the parts of a conversation. The mesh must be in use (`use_mesh`) when a method is called.

    Attributes:
      model: The network.
      params: Parameters of the network.
      processor: Processor of the model.
      max_positions: Length of the model's context.
      mesh: Mesh over which the parameters are sharded. None: a single device.
    """

    model: Janus
    params: Params
    processor: Processor
    max_positions: int
    mesh: Mesh | None = None

    @property
    def copies(self) -> int:
        """Number of equal sequences in a batch: one for each data shard."""
        return num_data_shards(self.mesh)

    @property
    def no_ids(self) -> Ids:
        """Image tokens of a part without target images."""
        return np.zeros((0, self.processor.num_gen_tokens), np.int32)

    def read_prompt(self, sequence: TokenSequence, ids: Ids) -> tuple[Context, ContextEnd]:
        """Runs the model on the start of a conversation. The length is padded to one of a few (`bucket_length`)."""
        length = bucket_length(len(sequence))
        batch = self._put(self.processor.left_pad([sequence] * self.copies, length), ids)
        hidden, cache = _read_prompt(self.model, self.params, batch, slots=round_up(length + 1, CACHE_STEP))
        context = Context(cache, length - len(sequence), len(sequence))
        return context, self.end(context, hidden)

    def read(self, context: Context, piece: TokenSequence, ids: Ids, *, pad: bool = True) -> tuple[Context, ContextEnd]:
        """Runs the model on the next part of a conversation.

        Args:
          context: The conversation so far, with one or more equal sequences.
          piece: The next part, at least one position.
          ids: Image tokens of its target images.
          pad: Whether the length of the part is padded to one of a few, so that few programs are compiled.
        """
        length = bucket_length(len(piece)) if pad else len(piece)
        context = context.grown(context.used + length)
        batch = self._put(self._right_padded(piece, context, length), ids)
        hidden, cache = _extend(self.model, self.params, batch, context.cache, len(piece))
        context = context._replace(cache=cache, length=context.length + len(piece))
        return context, self.end(context, hidden)

    def end(self, context: Context, hidden: Float[Array, "B D"]) -> ContextEnd:
        """Returns the end of a context, with the hidden states of its last position."""
        return ContextEnd(hidden, context.cache, jnp.full(hidden.shape[0], context.length, jnp.int32))

    def _right_padded(self, piece: TokenSequence, context: Context, length: int) -> Batch:
        copies, after = context.cache.segment_ids.shape[0], (0, length - len(piece))

        def repeat(array: np.ndarray) -> np.ndarray:
            return np.repeat(array[None], copies, axis=0)

        def padded(array: Int[np.ndarray, " T"], value: int) -> Int[np.ndarray, "B L"]:
            return repeat(np.pad(np.asarray(array, np.int32), after, constant_values=value))

        return Batch(
            tokens=padded(piece.tokens, self.processor.tokenizer.special.pad),
            segment_ids=padded(np.full(len(piece), PADDING_SEGMENT + 1), PADDING_SEGMENT),
            positions=padded(context.length + np.arange(len(piece)), 0),
            und_patch_index=padded(piece.und_patch_index, NO_IMAGE),
            gen_token_index=padded(piece.gen_token_index, NO_IMAGE),
            und_images=repeat(piece.und_images),
            gen_images=repeat(piece.gen_images),
        )

    def _put(self, batch: Batch, ids: Ids) -> Batch:
        ids = np.repeat(np.asarray(ids, np.int32)[None], batch.shape[0], axis=0)
        batch = batch._replace(gen_ids=ids, gen_images=batch.gen_images[:, :0])
        return batch if self.mesh is None else jax.device_put(batch, batch_sharding(self.mesh))


@jax.jit
def interleave_caches(caches: Sequence[KVCache]) -> KVCache:
    """Returns the cache of groups of sequences: one of each of the caches, which have equal lengths, in turn."""

    def interleave(*arrays: Array) -> Array:
        return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])

    layers = jax.tree.map(
        lambda *kv: nn.with_logical_constraint(interleave(*kv), KV_AXES), *(cache.layers for cache in caches)
    )
    return KVCache(layers, interleave(*(cache.segment_ids for cache in caches)), caches[0].length)


@functools.partial(jax.jit, static_argnames=("count",))
def separate_caches(cache: KVCache, count: int) -> list[KVCache]:
    """Inverts `interleave_caches` of `count` caches."""

    def select(index: int) -> KVCache:
        layers = jax.tree.map(lambda kv: nn.with_logical_constraint(kv[index::count], KV_AXES), cache.layers)
        return KVCache(layers, cache.segment_ids[index::count], cache.length)

    return [select(index) for index in range(count)]


_grow = jax.jit(grow_cache, static_argnames=("slots",))


@functools.partial(jax.jit, static_argnames=("model", "slots"))
def _read_prompt(model: Janus, params: Params, batch: Batch, *, slots: int) -> tuple[Float[Array, "B D"], KVCache]:
    hidden, cache = apply(model.prefill, params, batch, slots)
    return hidden[:, -1], cache


@functools.partial(jax.jit, static_argnames=("model",))
def _extend(
    model: Janus, params: Params, batch: Batch, cache: KVCache, count: int
) -> tuple[Float[Array, "B D"], KVCache]:
    """Runs the model on right-padded parts of `count` positions, and returns the hidden states of the last ones."""
    embedded = apply(model.embed, params, batch)
    hidden, extended = apply(model.extend, params, embedded, batch.positions, batch.segment_ids, cache)
    # The slots of the padding are beyond the length, so later positions overwrite them.
    last = jax.lax.dynamic_index_in_dim(hidden, count - 1, axis=1, keepdims=False)
    return last, extended._replace(length=cache.length + count)
