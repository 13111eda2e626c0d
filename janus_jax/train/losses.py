"""The sums that make a batch's loss, and Janus': one cross-entropy over the supervised places.

Janus (arXiv 2410.13848, §3.2): plain cross-entropy and no task weights, so a batch's loss is the mean over all its
supervised places: text ids, read by the text head, and ids of images to generate, read by the image head. Each head
runs on its own places alone, a chunk of them at a time: the logits of a large vocabulary are never whole in memory,
not in the backward pass either.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from janus_jax.batch import NO_IMAGE, NO_PLACE, Batch
from janus_jax.models.backbone import Backbone, Params, apply
from janus_jax.models.janus import Janus
from janus_jax.processing import Task

LogitsFn = Callable[[Float[Array, "B C D"]], Float[Array, "B C V"]]

TASKS = (Task.TEXT, Task.UNDERSTANDING, Task.GENERATION)
"""The order of the terms that every kind of model has."""


class Terms(NamedTuple):
    """The K terms of a loss, and how they make it.

    Attributes:
      names: of tasks, and of what else is learnt.
      means: the terms with the same number here are one mean over the places of all of them; the means are added.
      weights: of each in that sum.
    """

    names: tuple[str, ...]
    means: tuple[int, ...]
    weights: tuple[float, ...]

    def scales(self, counts: Float[Array, " K"]) -> Float[Array, " K"]:
        """What each term's sum is multiplied by to be its share of the loss."""
        together = jnp.asarray([[float(one == other) for other in self.means] for one in self.means])
        return jnp.asarray(self.weights) / jnp.maximum((together * counts).sum(axis=1), 1)


JANUS_TERMS = Terms(tuple(task.value for task in TASKS), means=(0, 0, 0), weights=(1.0, 1.0, 1.0))
"""One mean, whatever the task."""


@flax.struct.dataclass
class Totals:
    """Sums over supervised places, term by term.

    Totals of parts of a batch add up to those of the batch.

    Attributes:
      losses: of Janus, negative log-likelihoods of the ids, in nats.
      counts: supervised places.
      terms: what they are.
    """

    losses: Float[Array, " K"]
    counts: Float[Array, " K"]
    terms: Terms = flax.struct.field(pytree_node=False, default=JANUS_TERMS)

    @property
    def mean(self) -> Float[Array, ""]:
        """The loss; 0 where nothing is supervised."""
        return (self.losses * self.terms.scales(self.counts)).sum()

    @property
    def means(self) -> Float[Array, " K"]:
        """The loss of each term; 0 where it has no place."""
        return self.losses / jnp.maximum(self.counts, 1)

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(self.losses + other.losses, self.counts + other.counts, self.terms)


def supervised_counts(batch: Batch, num_tokens: int) -> Float[Array, " K"]:
    """Supervised places of a batch by task, known before the model runs.

    Args:
      num_tokens: ids of an image to generate.
    """
    text, understanding = _text_tasks(batch)
    images = 0 if batch.gen_starts is None else (batch.gen_starts != NO_PLACE).sum() * num_tokens
    return jnp.stack([text.sum(), understanding.sum(), jnp.asarray(images)]).astype(jnp.float32)


def batch_losses(model: Janus, params: Params, batch: Batch, chunk: int) -> Totals:
    """The summed losses of a batch whose image ids are known (`gen_ids`, where it has images to generate).

    Args:
      chunk: supervised places of a row whose logits are in memory at a time.
    """
    hidden = apply(model, params, "__call__", batch)
    sums = text_sums(model, params, batch, hidden, chunk) | {Task.GENERATION: jnp.zeros((), jnp.float32)}
    if batch.gen_starts is not None and batch.gen_ids is not None and batch.gen_ids.shape[1]:
        there = batch.gen_starts[..., None] != NO_PLACE
        places = jnp.where(there, batch.gen_starts[..., None] + jnp.arange(batch.gen_ids.shape[2]), NO_PLACE)
        places, targets = (x.reshape(batch.shape[0], -1) for x in (places, batch.gen_ids))
        read = functools.partial(apply, model, params, "image_logits")
        losses = cross_entropy(read, hidden, places, targets, chunk)
        sums[Task.GENERATION] = jnp.where(places != NO_PLACE, losses, 0).sum()
    counts = supervised_counts(batch, model.config.gen_encoder.num_tokens)
    return Totals(jnp.stack([sums[task] for task in TASKS]), counts)


def text_sums(
    model: Backbone, params: Params, batch: Batch, hidden: Float[Array, "B L D"], chunk: int
) -> dict[Task, Float[Array, ""]]:
    """Summed cross-entropies of the text targets, by task.

    Args:
      hidden: states of every place.
      chunk: see `batch_losses`.
    """
    sums = {task: jnp.zeros((), jnp.float32) for task in (Task.TEXT, Task.UNDERSTANDING)}
    if batch.text_targets is not None and batch.text_targets.shape[1]:
        targets = jnp.take_along_axis(batch.tokens, jnp.maximum(batch.text_targets, 0), axis=1)
        read = functools.partial(apply, model, params, "text_logits")
        losses = cross_entropy(read, hidden, batch.text_targets, targets, chunk)
        for task, mask in zip(sums, _text_tasks(batch), strict=True):
            sums[task] = jnp.where(mask, losses, 0).sum()
    return sums


def cross_entropy(
    logits_fn: LogitsFn,
    hidden: Float[Array, "B L D"],
    places: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    chunk: int,
) -> Float[Array, "B T"]:
    """-log p(target) of the ids at these places, each predicted from the place before it.

    Args:
      logits_fn: a head, float32.
      hidden: states of every place.
      places: where the ids stand; what comes out at `NO_PLACE` means nothing.
      targets: the ids.
      chunk: places of a row at a time; what the logits take in memory grows with it.
    """
    length = places.shape[1]
    num_chunks = -(-length // chunk)
    width = -(-length // num_chunks)  # Evenly, so that little is computed for nothing.

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, width * num_chunks - length), *((0, 0),) * (x.ndim - 2)))
        x = x.reshape(x.shape[0], num_chunks, width, *x.shape[2:]).swapaxes(0, 1)
        return nn.with_logical_constraint(x, (None, "batch", *(None,) * (x.ndim - 2)))

    # Computed once more in the backward pass rather than kept: kept, all chunks together would be the whole logits.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def losses_of_chunk(states: Float[Array, "B C D"], targets: Int[Array, "B C"]) -> Float[Array, "B C"]:
        return _negative_log_likelihood(logits_fn(states), targets)

    states = jnp.take_along_axis(hidden, jnp.maximum(places - 1, 0)[..., None], axis=1)
    _, losses = lax.scan(lambda _, chunk: (None, losses_of_chunk(*chunk)), None, (cut(states), cut(targets)))
    return losses.swapaxes(0, 1).reshape(len(places), -1)[:, :length]


def _negative_log_likelihood(logits: Float[Array, "B C V"], targets: Int[Array, "B C"]) -> Float[Array, "B C"]:
    logits = nn.with_logical_constraint(logits, ("batch", None, "vocab"))
    # A sum and no gather: a mesh may split the vocabulary.
    is_target = lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(is_target, logits, 0).sum(axis=-1)


def _text_tasks(batch: Batch) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """Which text targets belong to samples without and with images to understand."""
    if batch.text_targets is None:
        nothing = jnp.zeros((batch.shape[0], 0), bool)
        return nothing, nothing
    # Whether each of a row's segments, 0 to L, has an image.
    none = jnp.zeros(batch.shape[1] + 1, bool)
    sees = jax.vmap(lambda segments, und: none.at[segments].max(und))(batch.segment_ids, batch.und_places != NO_IMAGE)
    segments = jnp.take_along_axis(batch.segment_ids, jnp.maximum(batch.text_targets, 0), axis=1)
    shown, valid = jnp.take_along_axis(sees, segments, axis=1), batch.text_targets != NO_PLACE
    return valid & ~shown, valid & shown
