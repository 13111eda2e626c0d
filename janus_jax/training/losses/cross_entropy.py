"""The cross-entropy of a head whose logits are never whole in memory, and never computed twice.

The logits of a large vocabulary are too many to keep, so a head reads a chunk of places at a time. What the loss
wants of a chunk's logits is known as soon as they are there: softmax less target, times the place's weight. So the
gradient by the head and by the states it reads is taken in the forward pass, chunk by chunk, and the backward pass
has only to scale it. Keeping nothing and computing logits anew there would cost the head a third more.

On a mesh the rows of each shard read a copy of the head that is theirs for as long as the chunks last, and add up a
gradient of their own: a head is gathered once and its gradient summed once, however many chunks there are.
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
from janus_jax.sharding import context_data_shards, shard_leading_axis, sum_over_shards

Head = Callable[[Params, Float[Array, "B C D"]], Float[Array, "B C V"]]
"""From a head's own parameters and states to logits, float32."""


class HeadTargets(NamedTuple):
    """What a head is taught.

    Attributes:
      places: where the ids stand, each of which is predicted from the place before it; those that there are, first.
      targets: the ids.
      weights: what each counts in the sum, with no gradient; 0 where there is no place, or none that is to be read.
    """

    places: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    weights: Float[Array, "B T"]


class Losses(NamedTuple):
    """Of T places a row.

    Attributes:
      total: the weighted sum, which alone has a gradient.
      places: -log p(target) of each place, in nats, not weighted and without a gradient; of no meaning where there is
        no place, and 0 in chunks that were not read.
    """

    total: Float[Array, ""]
    places: Float[Array, "B T"]


def cross_entropy(head: Head, params: Params, hidden: Float[Array, "B L D"], taught: HeadTargets, chunk: int) -> Losses:
    """The losses of a head at its supervised places.

    Args:
      params: the head's own, and no others.
      hidden: states of every place.
      taught: of at least one place a row.
      chunk: places of a row at a time; what the logits take in memory grows with it.
    """
    rows, length = taught.places.shape
    num_chunks = -(-length // chunk)
    width = -(-length // num_chunks)  # Evenly, so that little is computed for nothing.
    shards = context_data_shards()

    def cut(x: Array) -> Array:
        """To N chunks of G shards of B rows of C places."""
        x = jnp.pad(x, ((0, 0), (0, width * num_chunks - length), *((0, 0),) * (x.ndim - 2)))
        return _laid(jnp.moveaxis(x.reshape(shards, rows // shards, num_chunks, width, *x.shape[2:]), 2, 0))

    states = jnp.take_along_axis(hidden, jnp.maximum(taught.places - 1, 0)[..., None], axis=1)
    total, losses = _summed(head, params, _Chunks(*map(cut, (states, taught.targets, taught.weights))))
    losses = jnp.moveaxis(lax.stop_gradient(losses), 0, 2).reshape(rows, -1)[:, :length]
    return Losses(total, losses)


class _Chunks(NamedTuple):
    states: Float[Array, "N G B C D"]
    targets: Int[Array, "N G B C"]
    weights: Float[Array, "N G B C"]

    @property
    def taught(self) -> Int[Array, ""]:
        """How many there are up to the last in which any row has a place: few rows are full of text."""
        # What the shards tell each other here shall wait for the states, though only the weights matter: a CPU's
        # runtime keeps no order between a loop's collectives and one that hangs on nothing in the loop, and devices
        # that take them up in different orders wait for each other without end.
        any_place = ((self.weights != 0) | jnp.isnan(self.states[..., 0])).any(axis=(1, 2, 3))
        return jnp.max(jnp.where(any_place, jnp.arange(len(any_place)) + 1, 0))

    def __call__(self, number: Array) -> "_Chunks":
        """One of them, without the first axis."""
        return _Chunks(*(lax.dynamic_index_in_dim(leaf, number, keepdims=False) for leaf in self))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(head: Head, params: Params, chunks: _Chunks) -> tuple[Float[Array, ""], Float[Array, "N G B C"]]:
    """The weighted sum over all chunks, and the losses."""
    leaves, tree = jax.tree.flatten(params)
    copies = jax.tree.unflatten(tree, [_copied(leaf, chunks.states) for leaf in leaves])

    def read(number: Array, losses: Array) -> Array:
        chunk = chunks(number)
        logits = _logits(head, copies, chunk.states)
        return _put(losses, number, jax.nn.logsumexp(logits, axis=-1) - _of_targets(logits, chunk.targets))

    losses = lax.fori_loop(0, chunks.taught, read, _laid(jnp.zeros_like(chunks.weights)))
    return (losses * chunks.weights).sum(), losses


class _Learning(NamedTuple):
    """What goes from chunk to chunk: losses, and their gradient by what trains of the head and by the states.

    Attributes:
      by_states: empty where nothing before the head trains.
    """

    losses: Float[Array, "N G B C"]
    by_trained: list[Float[Array, "G ..."]]
    by_states: list[Float[Array, "N G B C D"]]


def _forward(head: Head, params: Any, chunks: Any) -> tuple[tuple[Array, Array], tuple[Any, Any]]:
    """Both results, and the gradient of the first by the parameters that have one and by the states."""
    leaves, tree = jax.tree.flatten(params)
    passes_on, chunks = chunks.states.perturbed, _Chunks(*(leaf.value for leaf in chunks))
    copies = [_copied(leaf.value, chunks.states) for leaf in leaves]
    # What is frozen has no sums, which would be of its size.
    numbers = [number for number, leaf in enumerate(leaves) if leaf.perturbed]
    trained = [copies[number] for number in numbers]

    def read(trained: Sequence[Array], states: Array) -> Array:
        whole = list(copies)
        for number, leaf in zip(numbers, trained, strict=True):
            whole[number] = leaf
        return _logits(head, jax.tree.unflatten(tree, whole), states)

    def learn(number: Array, before: _Learning) -> _Learning:
        chunk = chunks(number)
        moved = (trained, chunk.states) if passes_on else (trained,)
        logits, pull = jax.vjp(lambda trained, states=chunk.states: read(trained, states), *moved)
        normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        wrong = (jnp.exp(logits - normalizer) - _is_target(logits, chunk.targets)) * chunk.weights[..., None]
        by_trained, *by_states = pull(wrong)
        return _Learning(
            _put(before.losses, number, normalizer[..., 0] - _of_targets(logits, chunk.targets)),
            [total + part for total, part in zip(before.by_trained, by_trained, strict=True)],
            [_put(all_, number, part) for all_, part in zip(before.by_states, by_states, strict=True)],
        )

    nothing = _Learning(
        _laid(jnp.zeros_like(chunks.weights)),
        [shard_leading_axis(jnp.zeros_like(copies[number], leaves[number].value.dtype)) for number in numbers],
        [_laid(jnp.zeros_like(chunks.states))] * passes_on,
    )
    learnt = lax.fori_loop(0, chunks.taught, learn, nothing)
    by_params: list[Array | None] = [None] * len(leaves)
    for number, of_shards in zip(numbers, learnt.by_trained, strict=True):
        by_params[number] = sum_over_shards(of_shards, copies[number].dtype).astype(of_shards.dtype)
    gradient = jax.tree.unflatten(tree, by_params), learnt.by_states[0] if passes_on else None
    return ((learnt.losses * chunks.weights).sum(), learnt.losses), gradient


def _backward(head: Head, gradient: tuple[Any, Any], scale: Any) -> tuple[Any, _Chunks]:
    by_params, by_states = jax.tree.map(lambda leaf: (leaf * scale[0]).astype(leaf.dtype), gradient)
    return by_params, _Chunks(by_states, None, None)  # type: ignore[arg-type]


_summed.defvjp(_forward, _backward, symbolic_zeros=True)


def _copied(leaf: Array, states: Float[Array, "N G B C D"]) -> Float[Array, "G ..."]:
    """One for each shard of the rows."""
    # Matrices are multiplied in the states' dtype: so less is gathered. What is added to logits is not rounded.
    leaf = leaf.astype(states.dtype) if leaf.ndim > 1 else leaf
    return shard_leading_axis(jnp.broadcast_to(leaf, (states.shape[1], *leaf.shape)))


def _logits(head: Head, copies: Params, states: Float[Array, "G B C D"]) -> Float[Array, "G B C V"]:
    return nn.with_logical_constraint(jax.vmap(head)(copies, states), ("batch", None, None, "vocab"))


def _laid(chunks: Float[Array, "N G ..."]) -> Float[Array, "N G ..."]:
    return nn.with_logical_constraint(chunks, (None, "batch", *(None,) * (chunks.ndim - 2)))


def _put(chunks: Float[Array, "N ..."], number: Array, one: Float[Array, "..."]) -> Float[Array, "N ..."]:
    return lax.dynamic_update_index_in_dim(chunks, one, number, axis=0)


def _is_target(logits: Float[Array, "G B C V"], targets: Int[Array, "G B C"]) -> Array:
    return lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]


def _of_targets(logits: Float[Array, "G B C V"], targets: Int[Array, "G B C"]) -> Float[Array, "G B C"]:
    # A sum and no gather: a mesh may split the vocabulary.
    return jnp.where(_is_target(logits, targets), logits, 0).sum(axis=-1)
