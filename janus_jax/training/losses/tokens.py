"""Terms of a training loss, and the cross-entropy of Janus over text and image tokens.

Janus (arXiv 2410.13848, section 3.2) uses plain cross-entropy without task weights. The loss of a batch is the mean
over all its target tokens: text tokens, predicted by the text head, and image tokens, predicted by the image head. Each
head runs on its own target positions only (`losses.cross_entropy`).
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
from janus_jax.training.losses.cross_entropy import HeadLoss, HeadTargets, cross_entropy

TASKS = (Task.TEXT, Task.UNDERSTANDING, Task.GENERATION)
"""Tasks in the order of the first three terms of every loss."""


class LossTerms(NamedTuple):
    """The K terms of a loss and their combination.

    Attributes:
      names: Names of the terms: the tasks, and for JanusFlow the alignment.
      groups: Group number of each term. The terms of a group share one mean over all their tokens. The loss is the sum
        of the group means.
      weights: Weight of each term in its group mean.
    """

    names: tuple[str, ...]
    groups: tuple[int, ...]
    weights: tuple[float, ...]

    def scales(self, counts: Float[Array, " K"]) -> Float[Array, " K"]:
        """Returns the factor by which the sum of each term enters the loss.

        Args:
          counts: Target tokens of each term in the whole batch.
        """
        same_group = jnp.asarray([[float(one == other) for other in self.groups] for one in self.groups])
        return jnp.asarray(self.weights) / jnp.maximum((same_group * counts).sum(axis=1), 1)


JANUS_LOSS_TERMS = LossTerms(tuple(task.value for task in TASKS), groups=(0, 0, 0), weights=(1.0, 1.0, 1.0))
"""One mean over the tokens of all tasks."""


@flax.struct.dataclass
class LossSums:
    """Sums over target tokens for each term. The sums of parts of a batch add up to those of the batch.

    Attributes:
      losses: Summed losses. For tokens these are negative log-likelihoods in nats.
      counts: Target tokens.
      terms: The terms.
    """

    losses: Float[Array, " K"]
    counts: Float[Array, " K"]
    terms: LossTerms = flax.struct.field(pytree_node=False, default=JANUS_LOSS_TERMS)

    @property
    def loss(self) -> Float[Array, ""]:
        """The loss; 0 without target tokens."""
        return (self.losses * self.terms.scales(self.counts)).sum()

    @property
    def term_means(self) -> Float[Array, " K"]:
        """The mean loss of each term; 0 for a term without target tokens."""
        return self.losses / jnp.maximum(self.counts, 1)

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(self.losses + other.losses, self.counts + other.counts, self.terms)


class Loss(NamedTuple):
    """Loss of a batch.

    Attributes:
      value: The differentiable loss.
      sums: The sums to report, without a gradient.
    """

    value: Float[Array, ""]
    sums: LossSums


def target_counts(batch: Batch, num_tokens: int) -> Float[Array, " K"]:
    """Counts the target tokens of each task. The counts are known before the model runs.

    Args:
      num_tokens: Tokens of a target image.
    """
    text, understanding = _text_tasks(batch)
    images = 0 if batch.gen_starts is None else (batch.gen_starts != NO_POSITION).sum() * num_tokens
    return jnp.stack([text.sum(), understanding.sum(), jnp.asarray(images)]).astype(jnp.float32)


def token_loss(model: Janus, params: Params, batch: Batch, scales: Float[Array, " K"], chunk: int) -> Loss:
    """Computes the loss of a batch with known image tokens (`gen_ids`, if it has target images).

    Args:
      scales: Factor of each task's sum (`LossTerms.scales`).
      chunk: Target tokens per sequence with logits in memory at a time.
    """
    hidden = apply(model.__call__, params, batch)
    value, sums = text_loss(model, params, batch, hidden, scales, chunk=chunk)
    if batch.gen_starts is not None and batch.gen_ids is not None and batch.gen_starts.shape[1]:
        starts = batch.gen_starts[..., None]
        positions = jnp.where(starts != NO_POSITION, starts + jnp.arange(batch.gen_ids.shape[2]), NO_POSITION)
        # Context images follow the target images and are not predicted.
        target_ids = batch.gen_ids[:, : batch.gen_starts.shape[1]]
        positions, tokens = (x.reshape(batch.shape[0], -1) for x in (positions, target_ids))
        is_target = positions != NO_POSITION
        targets = HeadTargets(positions, tokens, is_target * scales[TASKS.index(Task.GENERATION)])
        loss = _head_loss(model.image_logits, IMAGE_HEAD, params, hidden, targets, chunk=chunk)
        value += loss.total
        sums[Task.GENERATION] = jnp.where(is_target, loss.per_token, 0).sum()
    counts = target_counts(batch, model.config.gen_encoder.num_tokens)
    return Loss(value, LossSums(jnp.stack([sums[task] for task in TASKS]), counts))


def text_loss(
    model: Backbone,
    params: Params,
    batch: Batch,
    hidden: Float[Array, "B L D"],
    scales: Float[Array, " K"],
    *,
    chunk: int,
) -> tuple[Float[Array, ""], dict[Task, Float[Array, ""]]]:
    """Computes the part of the loss on text tokens.

    Args:
      hidden: Hidden states of all positions.
      scales: See `token_loss`.
      chunk: See `token_loss`.

    Returns:
      The differentiable loss, and the summed cross-entropy of each task without a gradient.
    """
    zero = jnp.zeros((), jnp.float32)
    sums = dict.fromkeys(TASKS, zero)
    if batch.text_targets is None or not batch.text_targets.shape[1]:
        return zero, sums
    masks = dict(zip(TASKS, _text_tasks(batch), strict=False))
    tokens = jnp.take_along_axis(batch.tokens, jnp.maximum(batch.text_targets, 0), axis=1)
    weights = jnp.stack([mask * scales[TASKS.index(task)] for task, mask in masks.items()]).sum(axis=0)
    targets = HeadTargets(batch.text_targets, tokens, weights)
    loss = _head_loss(model.text_logits, TEXT_HEAD, params, hidden, targets, chunk=chunk)
    return loss.total, sums | {task: jnp.where(mask, loss.per_token, 0).sum() for task, mask in masks.items()}


def _head_loss(
    head: Callable[[Array], Array],
    path: tuple[str, ...],
    params: Params,
    hidden: Float[Array, "B L D"],
    targets: HeadTargets,
    *,
    chunk: int,
) -> HeadLoss:
    """Computes the loss of one head, given as a method of the model and the path of the parameters that it reads."""

    def logits(head_params: Params, states: Float[Array, "B C D"]) -> Float[Array, "B C V"]:
        return apply(head, unflatten_dict({path: head_params}), states)

    return cross_entropy(logits, functools.reduce(operator.getitem, path, params), hidden, targets, chunk=chunk)


def _text_tasks(batch: Batch) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """Returns masks of the text targets in examples without and with input images."""
    if batch.text_targets is None:
        empty = jnp.zeros((batch.shape[0], 0), bool)
        return empty, empty
    # For each segment number, 0 to L: whether that segment has an input image.
    no_images = jnp.zeros(batch.shape[1] + 1, bool)
    has_image = jax.vmap(lambda segments, is_patch: no_images.at[segments].max(is_patch))(
        batch.segment_ids, batch.und_patch_index != NO_IMAGE
    )
    segments = jnp.take_along_axis(batch.segment_ids, jnp.maximum(batch.text_targets, 0), axis=1)
    with_image, is_target = jnp.take_along_axis(has_image, segments, axis=1), batch.text_targets != NO_POSITION
    return is_target & ~with_image, is_target & with_image
