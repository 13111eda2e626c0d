"""The cross-entropy of a head whose logits are never whole in memory, and never computed twice.

The logits of a large vocabulary are too many to keep, so a head reads a chunk of places at a time. What the loss
wants of a chunk's logits is known as soon as they are there: softmax less target, times the place's weight. So the
gradient by the head and by the states it reads is taken in the forward pass, chunk by chunk, and the backward pass
has only to scale it. Keeping nothing and computing logits anew there would cost the head a third more.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from janus_jax.models.backbone import Params

Head = Callable[[Params, Float[Array, "B C D"]], Float[Array, "B C V"]]
"""From a head's own parameters and states to logits, float32."""


class Losses(NamedTuple):
    """Of T places a row.

    Attributes:
      total: the weighted sum, which alone has a gradient.
      places: -log p(target) of each place, in nats, not weighted; without a gradient.
    """

    total: Float[Array, ""]
    places: Float[Array, "B T"]


class Supervised(NamedTuple):
    """What a head is taught.

    Attributes:
      places: where the ids stand, each of which is predicted from the place before it.
      targets: the ids.
      weights: what each counts in the sum, with no gradient; 0 where there is no place.
    """

    places: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    weights: Float[Array, "B T"]


def cross_entropy(head: Head, params: Params, hidden: Float[Array, "B L D"], taught: Supervised, chunk: int) -> Losses:
    """The losses of a head at its supervised places.

    Args:
      params: the head's own, and no others: the gradient is accumulated for those that have one.
      hidden: states of every place.
      chunk: places of a row at a time; what the logits take in memory grows with it.
    """
    length = taught.places.shape[1]
    num_chunks = -(-length // chunk)
    width = -(-length // num_chunks)  # Evenly, so that little is computed for nothing.

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, width * num_chunks - length), *((0, 0),) * (x.ndim - 2)))
        x = x.reshape(x.shape[0], num_chunks, width, *x.shape[2:]).swapaxes(0, 1)
        return nn.with_logical_constraint(x, (None, "batch", *(None,) * (x.ndim - 2)))

    states = jnp.take_along_axis(hidden, jnp.maximum(taught.places - 1, 0)[..., None], axis=1)
    total, losses = _chunks(head, params, cut(states), cut(taught.targets), cut(taught.weights))
    losses = lax.stop_gradient(losses).swapaxes(0, 1).reshape(len(states), -1)[:, :length]
    return Losses(total, losses)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunks(
    head: Head,
    params: Params,
    states: Float[Array, "N B C D"],
    targets: Int[Array, "N B C"],
    weights: Float[Array, "N B C"],
) -> tuple[Float[Array, ""], Float[Array, "N B C"]]:
    """The weighted sum over N chunks, and the losses."""

    def one(_: None, chunk: tuple[Array, Array]) -> tuple[None, Array]:
        states, targets = chunk
        logits = _whole_batch(head(params, states))
        return None, jax.nn.logsumexp(logits, axis=-1) - _of_targets(logits, targets)

    _, losses = lax.scan(one, None, (states, targets))
    return (losses * weights).sum(), losses


def _forward(head: Head, params: Any, states: Any, targets: Any, weights: Any) -> tuple[tuple[Array, Array], Any]:
    """Both results, and the gradient of the first by the parameters that have one and by the states."""
    leaves, tree = jax.tree.flatten(params)
    numbers = [number for number, leaf in enumerate(leaves) if leaf.perturbed]
    # What is frozen is given to the head, and nothing of the size of it is made.
    given = [leaf.value for leaf in leaves]

    def logits(trained: list[Array], states: Array) -> Array:
        filled = list(given)
        for number, leaf in zip(numbers, trained, strict=True):
            filled[number] = leaf
        return _whole_batch(head(jax.tree.unflatten(tree, filled), states))

    trained, passes_on = [given[number] for number in numbers], states.perturbed

    def one(sums: list[Array], chunk: tuple[Array, Array, Array]) -> tuple[list[Array], tuple[Array, Array]]:
        states, targets, weights = chunk
        moved = (trained, states) if passes_on else (trained,)
        read, pull = jax.vjp(lambda trained, states=states: logits(trained, states), *moved)
        normalizer = jax.nn.logsumexp(read, axis=-1, keepdims=True)
        by_trained, *by_states = pull((jnp.exp(read - normalizer) - _is_target(read, targets)) * weights[..., None])
        losses = normalizer[..., 0] - _of_targets(read, targets)
        return jax.tree.map(jnp.add, sums, by_trained), (losses, by_states)

    chunks = (states.value, targets.value, weights.value)
    sums, (losses, by_states) = lax.scan(one, jax.tree.map(jnp.zeros_like, trained), chunks)
    by_params: list[Array | None] = [None] * len(leaves)
    for number, leaf in zip(numbers, sums, strict=True):
        by_params[number] = leaf
    gradient = jax.tree.unflatten(tree, by_params), by_states[0] if passes_on else None
    return ((losses * weights.value).sum(), losses), gradient


def _backward(head: Head, gradient: tuple[Params, Array], scale: Any) -> tuple[Any, Any, None, None]:
    by_params, by_states = jax.tree.map(lambda leaf: (leaf * scale[0]).astype(leaf.dtype), gradient)
    return by_params, by_states, None, None


_chunks.defvjp(_forward, _backward, symbolic_zeros=True)


def _whole_batch(logits: Float[Array, "B C V"]) -> Float[Array, "B C V"]:
    return nn.with_logical_constraint(logits, ("batch", None, "vocab"))


def _is_target(logits: Float[Array, "B C V"], targets: Int[Array, "B C"]) -> Array:
    return lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]


def _of_targets(logits: Float[Array, "B C V"], targets: Int[Array, "B C"]) -> Float[Array, "B C"]:
    # A sum and no gather: a mesh may split the vocabulary.
    return jnp.where(_is_target(logits, targets), logits, 0).sum(axis=-1)
