"""What a kind of model learns from a batch: what is made known before, what its loss is, and which mean that is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from janus_jax.batch import Batch
from janus_jax.config import Dtype, Execution, JanusConfig, JanusFlowConfig, ModelConfig
from janus_jax.models.backbone import Backbone, Params, apply
from janus_jax.models.janus import Janus
from janus_jax.processing import Task
from janus_jax.training.losses.rectified_flow import (
    AlignedJanusFlow,
    FlowLossConfig,
    FlowTargets,
    flow_loss_sums,
    prepare_flow_targets,
)
from janus_jax.training.losses.tokens import (
    JANUS_LOSS_TERMS,
    Loss,
    LossSums,
    LossTerms,
    target_counts,
    text_loss,
    token_loss,
)


class RngStreams(NamedTuple):
    """Where what is random about a batch comes from.

    Attributes:
      key: of the step.
      rows: places of the batch's rows in that of all microbatches.
    """

    key: Key[Array, ""]
    rows: Int[Array, " B"]


class Objective(Protocol):
    """What a kind of model learns.

    Attributes:
      untrained: the part that no gradient of it reaches.
    """

    untrained: str

    def terms(self, model: Any) -> LossTerms:
        """The terms of the loss."""

    def counts(self, model: Any, batch: Batch) -> Float[Array, " K"]:
        """HeadTargets places by term, known before the model runs."""

    def prepare_targets(self, model: Any, params: Params, batch: Batch, draws: RngStreams, dtype: Dtype) -> Any:
        """What the loss is of: the batch with all that no gradient passes through.

        Args:
          dtype: of the computation of what did not come with the data.
        """

    def loss(self, model: Any, params: Params, task: Any, scales: Float[Array, " K"], chunk: int) -> Loss:
        """The loss of what `prepare_targets` gave.

        Args:
          scales: what a place of each term counts (`LossTerms.scales` of the whole batch's counts).
          chunk: supervised places of a row whose logits are in memory at a time.
        """


class TokenObjective:
    """Janus: text ids and image ids by one cross-entropy."""

    untrained = "gen_encoder"

    def terms(self, model: Janus) -> LossTerms:
        """See `Objective`."""
        return JANUS_LOSS_TERMS

    def counts(self, model: Janus, batch: Batch) -> Float[Array, " K"]:
        """See `Objective`."""
        return target_counts(batch, model.config.num_gen_tokens)

    def prepare_targets(self, model: Janus, params: Params, batch: Batch, draws: RngStreams, dtype: Dtype) -> Batch:
        """See `Objective`: the image ids."""
        return with_image_tokens(model, params, batch, dtype)

    def loss(self, model: Janus, params: Params, task: Batch, scales: Float[Array, " K"], chunk: int) -> Loss:
        """See `Objective`."""
        return token_loss(model, params, task, scales, chunk)


class FlowObjective:
    """JanusFlow: the mean cross-entropy of text, the mean error of velocities, and the mean alignment, added up."""

    untrained = "vae"

    def terms(self, model: AlignedJanusFlow) -> LossTerms:
        """See `Objective`."""
        return LossTerms(
            names=(*JANUS_LOSS_TERMS.names, "alignment"),
            means=(0, 0, 1, 2),
            weights=(1, 1, 1, model.learning.align_weight),
        )

    def counts(self, model: AlignedJanusFlow, batch: Batch) -> Float[Array, " K"]:
        """See `Objective`."""
        text, understanding, generation = target_counts(batch, model.config.num_gen_tokens)
        return jnp.stack([text, understanding, generation, generation * (model.learning.align_weight > 0)])

    def prepare_targets(
        self, model: AlignedJanusFlow, params: Params, batch: Batch, draws: RngStreams, dtype: Dtype
    ) -> FlowTargets:
        """See `Objective`: latents, times, noise and features."""
        return prepare_flow_targets(model, params, batch, draws.key, draws.rows, dtype)

    def loss(
        self, model: AlignedJanusFlow, params: Params, task: FlowTargets, scales: Float[Array, " K"], chunk: int
    ) -> Loss:
        """See `Objective`."""
        hidden, images = flow_loss_sums(model, params, task)
        value, text = text_loss(model, params, task.batch, hidden, scales, chunk)
        target_hidden_states = jnp.stack(images)
        sums = jnp.stack([text[Task.TEXT], text[Task.UNDERSTANDING], *lax.stop_gradient(target_hidden_states)])
        totals = LossSums(sums, self.counts(model, task.batch), self.terms(model))
        return Loss(value + (target_hidden_states * scales[-len(target_hidden_states) :]).sum(), totals)


OBJECTIVES: Mapping[type[Backbone], Objective] = {Janus: TokenObjective(), AlignedJanusFlow: FlowObjective()}


def objective_of(model: Backbone) -> Objective:
    """What a model learns that `training_model` made."""
    return OBJECTIVES[type(model)]


def training_model(config: ModelConfig, execution: Execution, learning: FlowLossConfig | None = None) -> Backbone:
    """The network of a config as it is trained, with the parts that serve training alone.

    Args:
      learning: of a flow; as in its paper where None.

    Raises:
      JanusError: the model has not what is to be learnt from.
    """
    if isinstance(config, JanusConfig):
        return Janus(config, execution)
    assert isinstance(config, JanusFlowConfig)
    learning = learning or FlowLossConfig()
    learning.check(config)
    return AlignedJanusFlow(config, execution, learning)


def with_image_tokens(model: Janus, params: Params, batch: Batch, dtype: Dtype) -> Batch:
    """The batch with the ids of its images to generate: those it came with, or the tokenizer's."""
    if batch.gen_ids is not None or not batch.gen_images.shape[1]:
        return batch
    tokenizer = Janus(model.config, replace(model.execution, dtype=dtype))
    return batch._replace(gen_ids=apply(tokenizer.target_image_tokens, params, batch))
