"""Training objectives. An objective owns the network to train, prepares its targets and computes its loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from janus_jax.batch import Batch
from janus_jax.config import Dtype, Execution, JanusConfig, JanusFlowConfig, ModelConfig
from janus_jax.models.backbone import Params, apply
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
    """Randomness of a batch or microbatch.

    Attributes:
      key: Random key of the step.
      indices: Index of each sequence in the whole batch.
    """

    key: Key[Array, ""]
    indices: Int[Array, " B"]


@dataclass(frozen=True)
class Objective(ABC):
    """Network, targets and loss of a model family.

    Attributes:
      model: The network, including the submodules that only training uses.
      frozen_part: Top-level parameter key of the image tokenizer or VAE, which has no gradient.
    """

    model: Any
    frozen_part: ClassVar[str]

    @property
    @abstractmethod
    def terms(self) -> LossTerms:
        """Terms of the loss."""

    def target_counts(self, batch: Batch) -> Float[Array, " K"]:
        """Counts the targets of each term before the model runs."""
        return target_counts(batch, self.model.config.num_gen_tokens)

    @abstractmethod
    def prepare_targets(self, params: Params, batch: Batch, rngs: RngStreams, dtype: Dtype) -> Any:
        """Computes everything in the loss that carries no gradient, such as image tokens, latents and noise.

        Args:
          dtype: Dtype of the image tokenizer or VAE, which runs if the data has no image tokens or latents.
        """

    @abstractmethod
    def loss(self, params: Params, targets: Any, scales: Float[Array, " K"], chunk: int) -> Loss:
        """Computes the loss.

        Args:
          targets: Output of `prepare_targets`.
          scales: Factor of each term's sum (`LossTerms.scales` for the counts of the whole batch).
          chunk: Target tokens per sequence with logits in memory at a time.
        """


class TokenObjective(Objective):
    """Objective of Janus: one cross-entropy over text and image tokens."""

    frozen_part = "gen_encoder"
    terms = JANUS_LOSS_TERMS

    def prepare_targets(self, params: Params, batch: Batch, rngs: RngStreams, dtype: Dtype) -> Batch:
        """Adds image tokens that the data does not provide."""
        if batch.gen_ids is not None or not batch.gen_images.shape[1]:
            return batch
        tokenizer = Janus(self.model.config, replace(self.model.execution, dtype=dtype))
        return batch._replace(gen_ids=apply(tokenizer.target_image_tokens, params, batch))

    def loss(self, params: Params, targets: Batch, scales: Float[Array, " K"], chunk: int) -> Loss:
        """See `Objective`."""
        return token_loss(self.model, params, targets, scales, chunk)


class FlowObjective(Objective):
    """Objective of JanusFlow: mean text cross-entropy, plus mean velocity error, plus mean alignment."""

    frozen_part = "vae"

    @property
    def terms(self) -> LossTerms:
        """See `Objective`."""
        names = (*JANUS_LOSS_TERMS.names, "alignment")
        return LossTerms(names, groups=(0, 0, 1, 2), weights=(1, 1, 1, self.model.loss_config.align_weight))

    def target_counts(self, batch: Batch) -> Float[Array, " K"]:
        """See `Objective`."""
        text, understanding, generation = super().target_counts(batch)
        return jnp.stack([text, understanding, generation, generation * (self.model.loss_config.align_weight > 0)])

    def prepare_targets(self, params: Params, batch: Batch, rngs: RngStreams, dtype: Dtype) -> FlowTargets:
        """Samples times and noise, interpolates the latents and computes the features to align with."""
        return prepare_flow_targets(self.model, params, batch, rngs.key, rngs.indices, dtype=dtype)

    def loss(self, params: Params, targets: FlowTargets, scales: Float[Array, " K"], chunk: int) -> Loss:
        """See `Objective`."""
        hidden, image_sums = flow_loss_sums(self.model, params, targets)
        value, text_sums = text_loss(self.model, params, targets.batch, hidden, scales, chunk=chunk)
        images = jnp.stack(image_sums)
        losses = jnp.stack([text_sums[Task.TEXT], text_sums[Task.UNDERSTANDING], *lax.stop_gradient(images)])
        sums = LossSums(losses, self.target_counts(targets.batch), self.terms)
        return Loss(value + (images * scales[-len(images) :]).sum(), sums)


def make_objective(
    config: ModelConfig, execution: Execution = Execution(), flow: FlowLossConfig | None = None
) -> Objective:
    """Makes the objective of a model family.

    Args:
      config: Config of the model.
      execution: How the model is executed.
      flow: Settings of the flow loss of JanusFlow; None for those of the paper.

    Raises:
      JanusError: The model lacks a part that the loss needs.
    """
    if isinstance(config, JanusConfig):
        return TokenObjective(Janus(config, execution))
    assert isinstance(config, JanusFlowConfig)
    flow = flow or FlowLossConfig()
    flow.check(config)
    return FlowObjective(AlignedJanusFlow(config, execution, flow))
