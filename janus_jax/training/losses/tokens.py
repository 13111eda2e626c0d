"""The sums that make a batch's loss, and Janus': one cross-entropy over the supervised places.

Janus (arXiv 2410.13848, §3.2): plain cross-entropy and no task weights, so a batch's loss is the mean over all its
supervised places: text ids, read by the text head, and ids of images to generate, read by the image head. Each head
runs on its own places alone (`train.cross_entropy`).
"""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Bool, Float

from janus_jax.batch import NO_IMAGE, NO_POSITION, Batch
from janus_jax.models.backbone import TEXT_HEAD, Backbone, Params, apply
from janus_jax.models.janus import IMAGE_HEAD, Janus
from janus_jax.processing import Task
from janus_jax.training.losses.cross_entropy import HeadTargets, Losses, cross_entropy

TASKS = (Task.TEXT, Task.UNDERSTANDING, Task.GENERATION)
"""The order of the terms that every kind of model has."""


class LossTerms(NamedTuple):
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


JANUS_LOSS_TERMS = LossTerms(tuple(task.value for task in TASKS), means=(0, 0, 0), weights=(1.0, 1.0, 1.0))
"""One mean, whatever the task."""


@flax.struct.dataclass
class LossSums:
    """Sums over supervised places, term by term.

    LossSums of parts of a batch add up to those of the batch.

    Attributes:
      losses: of Janus, negative log-likelihoods of the ids, in nats.
      counts: supervised places.
      terms: what they are.
    """

    losses: Float[Array, " K"]
    counts: Float[Array, " K"]
    terms: LossTerms = flax.struct.field(pytree_node=False, default=JANUS_LOSS_TERMS)

    @property
    def mean(self) -> Float[Array, ""]:
        """The loss; 0 where nothing is supervised."""
        return (self.losses * self.terms.scales(self.counts)).sum()

    @property
    def means(self) -> Float[Array, " K"]:
        """The loss of each term; 0 where it has no place."""
        return self.losses / jnp.maximum(self.counts, 1)

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(self.losses + other.losses, self.counts + other.counts, self.terms)


def target_counts(batch: Batch, num_tokens: int) -> Float[Array, " K"]:
    """HeadTargets places of a batch by task, known before the model runs.

    Args:
      num_tokens: ids of an image to generate.
    """
    text, understanding = _text_tasks(batch)
    images = 0 if batch.gen_starts is None else (batch.gen_starts != NO_POSITION).sum() * num_tokens
    return jnp.stack([text.sum(), understanding.sum(), jnp.asarray(images)]).astype(jnp.float32)


class Loss(NamedTuple):
    """Of a batch.

    Attributes:
      value: what the gradient is taken of.
      totals: what is told of it, without a gradient.
    """

    value: Float[Array, ""]
    totals: LossSums


def token_loss(model: Janus, params: Params, batch: Batch, scales: Float[Array, " K"], chunk: int) -> Loss:
    """The loss of a batch whose image ids are known (`gen_ids`, where it has images to generate).

    Args:
      scales: what a place of each task counts (`LossTerms.scales`).
      chunk: supervised places of a row whose logits are in memory at a time.
    """
    hidden = apply(model.__call__, params, batch)
    value, sums = text_loss(model, params, batch, hidden, scales, chunk)
    if batch.gen_starts is not None and batch.gen_ids is not None and batch.gen_ids.shape[1]:
        there = batch.gen_starts[..., None] != NO_POSITION
        places = jnp.where(there, batch.gen_starts[..., None] + jnp.arange(batch.gen_ids.shape[2]), NO_POSITION)
        places, targets = (x.reshape(batch.shape[0], -1) for x in (places, batch.gen_ids))
        valid = places != NO_POSITION
        taught = HeadTargets(places, targets, valid * scales[TASKS.index(Task.GENERATION)])
        read = _head_losses(model.image_logits, IMAGE_HEAD, params, hidden, taught, chunk=chunk)
        value, sums = value + read.total, sums | {Task.GENERATION: jnp.where(valid, read.places, 0).sum()}
    counts = target_counts(batch, model.config.gen_encoder.num_tokens)
    return Loss(value, LossSums(jnp.stack([sums[task] for task in TASKS]), counts))


def text_loss(
    model: Backbone, params: Params, batch: Batch, hidden: Float[Array, "B L D"], scales: Float[Array, " K"], chunk: int
) -> tuple[Float[Array, ""], dict[Task, Float[Array, ""]]]:
    """The text targets' share of the loss, and their summed cross-entropies by task, without a gradient.

    Args:
      hidden: states of every place.
      scales, chunk: see `token_loss`.
    """
    nothing = jnp.zeros((), jnp.float32)
    sums = dict.fromkeys(TASKS, nothing)
    if batch.text_targets is None or not batch.text_targets.shape[1]:
        return nothing, sums
    masks = dict(zip(TASKS, _text_tasks(batch), strict=False))
    targets = jnp.take_along_axis(batch.tokens, jnp.maximum(batch.text_targets, 0), axis=1)
    weights = jnp.stack([mask * scales[TASKS.index(task)] for task, mask in masks.items()]).sum(axis=0)
    supervised = HeadTargets(batch.text_targets, targets, weights)
    read = _head_losses(model.text_logits, TEXT_HEAD, params, hidden, supervised, chunk=chunk)
    return read.total, sums | {task: jnp.where(mask, read.places, 0).sum() for task, mask in masks.items()}


def _head_losses(
    head: Callable[[Array], Array],
    path: tuple[str, ...],
    params: Params,
    hidden: Float[Array, "B L D"],
    supervised: HeadTargets,
    *,
    chunk: int,
) -> Losses:
    """Losses of one head: a method of the model, and the path of the parameters that it reads."""

    def logits(head_params: Params, states: Float[Array, "B C D"]) -> Float[Array, "B C V"]:
        return apply(head, unflatten_dict({path: head_params}), states)

    return cross_entropy(logits, functools.reduce(operator.getitem, path, params), hidden, supervised, chunk)


def _text_tasks(batch: Batch) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """Which text targets belong to samples without and with images to understand."""
    if batch.text_targets is None:
        nothing = jnp.zeros((batch.shape[0], 0), bool)
        return nothing, nothing
    # Whether each of a row's segments, 0 to L, has an image.
    none = jnp.zeros(batch.shape[1] + 1, bool)
    sees = jax.vmap(lambda segments, und: none.at[segments].max(und))(
        batch.segment_ids, batch.und_patch_index != NO_IMAGE
    )
    segments = jnp.take_along_axis(batch.segment_ids, jnp.maximum(batch.text_targets, 0), axis=1)
    shown, valid = jnp.take_along_axis(sees, segments, axis=1), batch.text_targets != NO_POSITION
    return valid & ~shown, valid & shown
