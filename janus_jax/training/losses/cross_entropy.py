"""Cross-entropy of a head that computes each logit once and never holds all logits in memory.

All logits of a large vocabulary do not fit in memory, so a head processes its targets in chunks. The gradient with
respect to the logits, `(softmax - one_hot(target)) * weight`, is known as soon as the logits are. The forward pass
therefore computes the gradients with respect to head and hidden states chunk by chunk, and the backward pass only
scales them. Recomputing the logits in the backward pass would make the head a third more expensive.

On a mesh, each shard of the batch reads its own copy of the head during the loop and accumulates its own gradient. The
head is gathered once and its gradient reduced once, regardless of the number of chunks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from janus_jax.models.backbone import Params
from janus_jax.sharding import num_data_shards, shard_leading_axis, sum_over_shards

Head = Callable[[Params, Float[Array, "B C D"]], Float[Array, "B C V"]]
"""Maps the parameters of a head and hidden states to logits in float32."""


class HeadTargets(NamedTuple):
    """Targets of a head.

    Attributes:
      positions: Positions of the target tokens. Each token is predicted from the position before it. Valid positions
        come first.
      tokens: The target tokens.
      weights: Weight of each target in the sum, without a gradient; 0 for padding and ignored targets.
    """

    positions: Int[Array, "B T"]
    tokens: Int[Array, "B T"]
    weights: Float[Array, "B T"]


class HeadLoss(NamedTuple):
    """Loss of a head.

    Attributes:
      total: Weighted sum, the only output with a gradient.
      per_token: -log p of each target in nats, unweighted and without a gradient. Values at padding are
        meaningless; a skipped chunk, which is all padding, has zeros.
    """

    total: Float[Array, ""]
    per_token: Float[Array, "B T"]


def cross_entropy(
    head: Head, params: Params, hidden: Float[Array, "B L D"], targets: HeadTargets, *, chunk: int
) -> HeadLoss:
    """Computes the cross-entropy of a head at its target positions.

    Args:
      head: Computes the logits.
      params: Parameters of the head, without any others.
      hidden: Hidden states of all positions.
      targets: Targets, at least one per sequence (T > 0).
      chunk: Targets per sequence and chunk. The memory of the logits is proportional to it.
    """
    rows, length = targets.positions.shape
    num_chunks = -(-length // chunk)
    width = -(-length // num_chunks)  # Equal chunks, for the least padding.
    shards = num_data_shards(jax.sharding.get_abstract_mesh())

    def split(x: Array) -> Array:
        """Reshapes [B T ...] to [N chunks, G shards, B sequences per shard, C targets, ...]."""
        x = jnp.pad(x, ((0, 0), (0, width * num_chunks - length), *((0, 0),) * (x.ndim - 2)))
        return _constrained(jnp.moveaxis(x.reshape(shards, rows // shards, num_chunks, width, *x.shape[2:]), 2, 0))

    states = jnp.take_along_axis(hidden, jnp.maximum(targets.positions - 1, 0)[..., None], axis=1)
    total, losses = _weighted_sum(head, params, _Chunks(*map(split, (states, targets.tokens, targets.weights))))
    losses = jnp.moveaxis(lax.stop_gradient(losses), 0, 2).reshape(rows, -1)[:, :length]
    return HeadLoss(total, losses)


class _Chunks(NamedTuple):
    states: Float[Array, "N G B C D"]
    tokens: Int[Array, "N G B C"]
    weights: Float[Array, "N G B C"]

    @property
    def num_used(self) -> Int[Array, ""]:
        """Number of chunks up to the last one with a target. Later chunks are skipped."""
        # Depends on the states, although only the weights matter: the CPU runtime does not order the collectives of a
        # loop and a collective that does not depend on it, and devices that start them in different orders deadlock.
        has_target = ((self.weights != 0) | jnp.isnan(self.states[..., 0])).any(axis=(1, 2, 3))
        return jnp.max(jnp.where(has_target, jnp.arange(len(has_target)) + 1, 0))

    def __call__(self, number: Array) -> "_Chunks":
        """Returns one chunk, without the first axis."""
        return _Chunks(*(lax.dynamic_index_in_dim(leaf, number, keepdims=False) for leaf in self))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sum(head: Head, params: Params, chunks: _Chunks) -> tuple[Float[Array, ""], Float[Array, "N G B C"]]:
    """Returns the weighted sum over all chunks, and the loss of each target."""
    leaves, tree = jax.tree.flatten(params)
    copies = jax.tree.unflatten(tree, [_copy_per_shard(leaf, chunks.states) for leaf in leaves])

    def read(number: Array, losses: Array) -> Array:
        chunk = chunks(number)
        logits = _logits(head, copies, chunk.states)
        return _put(losses, number, jax.nn.logsumexp(logits, axis=-1) - target_logits(logits, chunk.tokens))

    losses = lax.fori_loop(0, chunks.num_used, read, _constrained(jnp.zeros_like(chunks.weights)))
    return (losses * chunks.weights).sum(), losses


class _Carry(NamedTuple):
    """Losses and gradients accumulated over chunks.

    Attributes:
      head_grads: Gradients of the trained leaves of the head, for each shard.
      state_grads: Gradient of the hidden states; an empty list if they need no gradient.
    """

    losses: Float[Array, "N G B C"]
    head_grads: list[Float[Array, "G ..."]]
    state_grads: list[Float[Array, "N G B C D"]]


def _forward(head: Head, params: Any, chunks: Any) -> tuple[tuple[Array, Array], tuple[Any, Any]]:
    """Returns both outputs, and the gradients of the sum with respect to trained parameters and hidden states."""
    leaves, tree = jax.tree.flatten(params)
    needs_state_grads, chunks = chunks.states.perturbed, _Chunks(*(leaf.value for leaf in chunks))
    copies = [_copy_per_shard(leaf.value, chunks.states) for leaf in leaves]
    # Frozen leaves have no gradient buffers, which would have their size.
    numbers = [number for number, leaf in enumerate(leaves) if leaf.perturbed]
    trained = [copies[number] for number in numbers]

    def compute_logits(trained: Sequence[Array], states: Array) -> Array:
        whole = list(copies)
        for number, leaf in zip(numbers, trained, strict=True):
            whole[number] = leaf
        return _logits(head, jax.tree.unflatten(tree, whole), states)

    def accumulate(number: Array, carry: _Carry) -> _Carry:
        chunk = chunks(number)
        inputs = (trained, chunk.states) if needs_state_grads else (trained,)
        logits, vjp = jax.vjp(lambda trained, states=chunk.states: compute_logits(trained, states), *inputs)
        normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        logit_grads = (jnp.exp(logits - normalizer) - _is_target(logits, chunk.tokens)) * chunk.weights[..., None]
        head_grads, *state_grads = vjp(logit_grads)
        return _Carry(
            _put(carry.losses, number, normalizer[..., 0] - target_logits(logits, chunk.tokens)),
            [total + part for total, part in zip(carry.head_grads, head_grads, strict=True)],
            [_put(all_, number, part) for all_, part in zip(carry.state_grads, state_grads, strict=True)],
        )

    start = _Carry(
        _constrained(jnp.zeros_like(chunks.weights)),
        [shard_leading_axis(jnp.zeros_like(copies[number], leaves[number].value.dtype)) for number in numbers],
        [_constrained(jnp.zeros_like(chunks.states))] * needs_state_grads,
    )
    end = lax.fori_loop(0, chunks.num_used, accumulate, start)
    param_grads: list[Array | None] = [None] * len(leaves)
    for number, shard_grads in zip(numbers, end.head_grads, strict=True):
        param_grads[number] = sum_over_shards(shard_grads, copies[number].dtype).astype(shard_grads.dtype)
    gradient = jax.tree.unflatten(tree, param_grads), end.state_grads[0] if needs_state_grads else None
    return ((end.losses * chunks.weights).sum(), end.losses), gradient


def _backward(head: Head, gradient: tuple[Any, Any], scale: Any) -> tuple[Any, _Chunks]:
    param_grads, state_grads = jax.tree.map(lambda leaf: (leaf * scale[0]).astype(leaf.dtype), gradient)
    return param_grads, _Chunks(state_grads, None, None)  # type: ignore[arg-type]


_weighted_sum.defvjp(_forward, _backward, symbolic_zeros=True)


def _copy_per_shard(leaf: Array, states: Float[Array, "N G B C D"]) -> Float[Array, "G ..."]:
    """Copies a leaf for each shard of the batch."""
    # Matrices are cast to the dtype of the product first, so that less is gathered. Biases stay in float32.
    leaf = leaf.astype(states.dtype) if leaf.ndim > 1 else leaf
    return shard_leading_axis(jnp.broadcast_to(leaf, (states.shape[1], *leaf.shape)))


def _logits(head: Head, copies: Params, states: Float[Array, "G B C D"]) -> Float[Array, "G B C V"]:
    return nn.with_logical_constraint(jax.vmap(head)(copies, states), ("batch", None, None, "vocab"))


def _constrained(chunks: Float[Array, "N G ..."]) -> Float[Array, "N G ..."]:
    return nn.with_logical_constraint(chunks, (None, "batch", *(None,) * (chunks.ndim - 2)))


def _put(chunks: Float[Array, "N ..."], number: Array, one: Float[Array, "..."]) -> Float[Array, "N ..."]:
    return lax.dynamic_update_index_in_dim(chunks, one, number, axis=0)


def _is_target(logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]) -> Array:
    return lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == tokens[..., None]


def target_logits(logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns the logit of each token."""
    # A sum instead of a gather, because the vocabulary may be sharded.
    return jnp.where(_is_target(logits, tokens), logits, 0).sum(axis=-1)
