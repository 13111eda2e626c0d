"""The objective of policy optimization: GRPO on image tokens.

GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1, eq. 3 and 4) samples a group of images for each prompt. The advantage
of an image is its reward relative to its group. The loss of a token with ratio r of the new to the old probability,
advantage A and reference log-probability is

    -(min(r A, clip(r, 1 - c, 1 + c) A) - beta KL),    KL = exp(ref - new) - (ref - new) - 1.

All images have the same number of tokens, so the mean over all tokens equals the mean over images of their means.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float

from janus_jax.batch import Batch
from janus_jax.config import Dtype, Execution, JanusConfig, ModelConfig
from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params
from janus_jax.models.janus import Janus
from janus_jax.training.lora import split_adapters
from janus_jax.training.losses.tokens import Loss, LossSums, LossTerms
from janus_jax.training.objectives import Objective, RngStreams
from janus_jax.training.rl.config import PolicyLoss, PolicyOptimization
from janus_jax.training.rl.log_probs import TokenDistribution, score_image_tokens

REFERENCE = "reference"
"""Key of the reference among the frozen parameters: the initial values of the trained parameters."""

TERMS = ("policy", "kl", "entropy", "clipped")
"""Terms of the loss. Entropy and the share of clipped tokens are reported only."""


class PolicyBatch(NamedTuple):
    """B sampled images.

    Attributes:
      sequences: Prompts with the image tokens, see `log_probs.score_image_tokens`.
      advantages: Advantage of each image.
      old_log_probs: Log-probabilities under the parameters that sampled the images. None: those of the current
        parameters, for a single update.
      reference_log_probs: Log-probabilities under the reference. None: computed from the parameters.
    """

    sequences: Batch
    advantages: Float[Any, " B"]
    old_log_probs: Float[Any, "B N"] | None = None
    reference_log_probs: Float[Any, "B N"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """B, and the number of tokens per sequence."""
        return self.sequences.tokens.shape[0], self.sequences.tokens.shape[2]


class TokenTerms(NamedTuple):
    """Terms of the loss for each token, see `TERMS`."""

    policy: Float[Array, "B N"]
    kl: Float[Array, "B N"]
    clipped: Float[Array, "B N"]


def group_advantages(rewards: Float[Array, "P G"], loss: PolicyLoss) -> Float[Array, "P G"]:
    """Returns the advantages of the images of each group (section 4.1.2).

    The standard deviation has the divisor G - 1.
    """
    centered = rewards - rewards.mean(axis=1, keepdims=True)
    if not loss.normalize:
        return centered
    return centered / (jnp.std(rewards, axis=1, keepdims=True, ddof=1) + loss.epsilon)


def kl_estimate(log_probs: Float[Array, "B N"], reference: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """Returns the unbiased, non-negative estimate of the KL divergence from the reference (eq. 4)."""
    return jnp.expm1(reference - log_probs) - (reference - log_probs)


def token_terms(
    log_probs: Float[Array, "B N"],
    old: Float[Array, "B N"],
    reference: Float[Array, "B N"] | None,
    advantages: Float[Array, " B"],
    loss: PolicyLoss,
) -> TokenTerms:
    """Computes the terms of the loss for each token.

    Args:
      log_probs: Log-probabilities under the trained parameters, with a gradient.
      old: Log-probabilities under the parameters that sampled the tokens.
      reference: Log-probabilities under the reference; None for a KL term of 0.
      advantages: Advantage of each image.
      loss: Settings.
    """
    log_ratios = log_probs - old
    if loss.ratio == "sequence":
        # GSPO (arXiv 2507.18071, eq. 7): the geometric mean of the ratios of a sequence.
        log_ratios = jnp.broadcast_to(log_ratios.mean(axis=1, keepdims=True), log_ratios.shape)
    ratios, gains = jnp.exp(log_ratios), advantages[:, None]
    bounded = jnp.clip(ratios, 1 - loss.clip, 1 + loss.clip)
    policy = -jnp.minimum(ratios * gains, bounded * gains)
    clipped = ((ratios > 1 + loss.clip) & (gains > 0)) | ((ratios < 1 - loss.clip) & (gains < 0))
    kl = jnp.zeros_like(policy) if reference is None else kl_estimate(log_probs, reference)
    return TokenTerms(policy, kl, clipped.astype(jnp.float32))


@dataclass(frozen=True)
class PolicyObjective(Objective):
    """Objective of policy optimization. Its batches are of type `PolicyBatch`.

    Attributes:
      settings: Settings of the loss.
      distribution: The distribution whose log-probabilities are optimized.
    """

    settings: PolicyLoss
    distribution: TokenDistribution

    frozen_part = "gen_encoder"

    @property
    def terms(self) -> LossTerms:
        """See `Objective`."""
        return LossTerms(TERMS, groups=(0, 1, 2, 3), weights=(1.0, self.settings.beta, 0.0, 0.0))

    def target_counts(self, batch: Any) -> Float[Array, " K"]:
        """See `Objective`."""
        ids = batch.sequences.gen_ids
        return jnp.full(len(TERMS), float(ids.shape[0] * ids.shape[-1]))

    def prepare_targets(self, params: Params, batch: Any, rngs: RngStreams, dtype: Dtype) -> PolicyBatch:
        """Adds the log-probabilities under the reference, if the loss needs them."""
        targets: PolicyBatch = batch
        if not self.settings.beta or targets.reference_log_probs is not None:
            return targets
        return targets._replace(reference_log_probs=self.log_probs(reference_params(params), targets.sequences))

    def log_probs(self, params: Params, sequences: Batch, chunk: int = 512) -> Float[Array, "B N"]:
        """Returns log-probabilities, see `log_probs.score_image_tokens`."""
        return score_image_tokens(self.model, params, sequences, self.distribution, chunk=chunk).log_probs

    def loss(self, params: Params, targets: Any, scales: Float[Array, " K"], chunk: int) -> Loss:
        """See `Objective`."""
        batch: PolicyBatch = targets
        scores = score_image_tokens(self.model, params, batch.sequences, self.distribution, chunk=chunk)
        old = lax.stop_gradient(scores.log_probs) if batch.old_log_probs is None else batch.old_log_probs
        reference = batch.reference_log_probs if self.settings.beta else None
        terms = token_terms(scores.log_probs, old, reference, batch.advantages, self.settings)
        sums = jnp.stack([x.sum() for x in (terms.policy, terms.kl, scores.entropy, terms.clipped)])
        reported = LossSums(lax.stop_gradient(sums), self.target_counts(batch), self.terms)
        return Loss((sums * scales).sum(), reported)


def make_policy_objective(config: ModelConfig, execution: Execution, rl: PolicyOptimization) -> PolicyObjective:
    """Makes the objective of a stage with reinforcement learning.

    Raises:
      JanusError: The model is a JanusFlow, whose images have no log-probabilities.
    """
    if not isinstance(config, JanusConfig):
        raise JanusError(
            f"{config.name} is a JanusFlow, whose images have no log-probabilities; use a Janus or Janus-Pro model for "
            f"reinforcement learning."
        )
    is_guided = rl.log_probs == "guided"
    distribution = TokenDistribution(rl.guidance_scale, rl.temperature) if is_guided else TokenDistribution()
    return PolicyObjective(Janus(config, execution), rl.loss, distribution)


def reference_params(params: Params) -> Params:
    """Returns the parameters of the reference: the initial values of trained parameters, and no adapters.

    Args:
      params: All parameters of the state, with the reference's under `REFERENCE` if parameters other than adapters are
        trained.
    """
    model, _ = split_adapters({name: part for name, part in params.items() if name != REFERENCE})
    return unflatten_dict(flatten_dict(model) | flatten_dict(params.get(REFERENCE, {})))
