"""The objective of policy optimization: GRPO on the actions of images.

GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1, eq. 3 and 4) samples a group of images for each prompt. The advantage
of an image is its reward relative to its group. The loss of an action (a token, or a step of a flow: `rl.policy`) with
ratio r of the new to the old probability, advantage A and KL divergence from the reference is

    -(min(r A, clip(r, 1 - c, 1 + c) A) - beta KL).

All images have the same number of actions, so the mean over all actions equals the mean over images of their means.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float

from janus_jax.config import Dtype, Execution, JanusConfig, ModelConfig
from janus_jax.generation.image_sampler import make_image_sampler
from janus_jax.generation.image_tokens import TokenSampler
from janus_jax.models.backbone import Params
from janus_jax.models.factory import make_model
from janus_jax.training.lora import split_adapters
from janus_jax.training.losses.tokens import Loss, LossSums, LossTerms
from janus_jax.training.objectives import Objective, RngStreams
from janus_jax.training.rl.config import PolicyLoss, PolicyOptimization
from janus_jax.training.rl.flow_policy import FlowPolicy
from janus_jax.training.rl.policy import ImagePolicy, Scores
from janus_jax.training.rl.token_policy import TokenDistribution, TokenPolicy

REFERENCE = "reference"
"""Key of the reference among the frozen parameters: the initial values of the trained parameters."""

TERMS = ("policy", "kl", "entropy", "clipped")
"""Terms of the loss. Entropy and the share of clipped actions are reported only."""


class PolicyBatch(NamedTuple):
    """B sampled images.

    Attributes:
      trajectories: Prompts with the actions of the images (`policy.Samples`).
      advantages: Advantage of each image.
      old_log_probs: Log-probabilities under the parameters that sampled the images. None: those of the current
        parameters, for a single update.
      reference: `policy.Scores.distributions` under the reference. None: computed from the parameters.
    """

    trajectories: Any
    advantages: Float[Any, " B"]
    old_log_probs: Float[Any, "B N"] | None = None
    reference: Float[Any, "B N ..."] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """B."""
        shape: tuple[int, ...] = self.advantages.shape
        return shape


class ActionTerms(NamedTuple):
    """Terms of the loss for each action, see `TERMS`."""

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


def action_terms(
    log_probs: Float[Array, "B N"],
    old: Float[Array, "B N"],
    kl: Float[Array, "B N"] | None,
    advantages: Float[Array, " B"],
    loss: PolicyLoss,
) -> ActionTerms:
    """Computes the terms of the loss for each action.

    Args:
      log_probs: Log-probabilities under the trained parameters, with a gradient.
      old: Log-probabilities under the parameters that sampled the actions.
      kl: KL divergence from the reference; None for 0.
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
    return ActionTerms(policy, jnp.zeros_like(policy) if kl is None else kl, clipped.astype(jnp.float32))


@dataclass(frozen=True)
class PolicyObjective(Objective):
    """Objective of policy optimization. Its batches are of type `PolicyBatch`.

    Attributes:
      settings: Settings of the loss.
      policy: How images are sampled and scored.
    """

    settings: PolicyLoss
    policy: ImagePolicy

    @property
    def frozen_part(self) -> str:  # type: ignore[override]
        """See `Objective`."""
        return self.policy.frozen_part

    @property
    def terms(self) -> LossTerms:
        """See `Objective`."""
        return LossTerms(TERMS, groups=(0, 1, 2, 3), weights=(1.0, self.settings.beta, 0.0, 0.0))

    def target_counts(self, batch: Any) -> Float[Array, " K"]:
        """See `Objective`."""
        return jnp.full(len(TERMS), float(batch.shape[0] * self.policy.num_actions(batch.trajectories)))

    def prepare_targets(self, params: Params, batch: Any, rngs: RngStreams, dtype: Dtype) -> PolicyBatch:
        """Adds the distributions under the reference, if the loss needs them."""
        targets: PolicyBatch = batch
        if not self.settings.beta or targets.reference is not None:
            return targets
        return targets._replace(reference=self.score_reference(params, targets.trajectories).distributions)

    def score(self, params: Params, trajectories: Any, chunk: int = 512) -> Scores:
        """Returns the scores under some parameters, see `ImagePolicy.score`."""
        return self.policy.score(self.model, params, trajectories, chunk)

    def score_reference(self, params: Params, trajectories: Any, chunk: int = 512) -> Scores:
        """Returns the scores under the reference."""
        return self.score(reference_params(params), trajectories, chunk)

    def loss(self, params: Params, targets: Any, scales: Float[Array, " K"], chunk: int) -> Loss:
        """See `Objective`."""
        batch: PolicyBatch = targets
        scores = self.score(params, batch.trajectories, chunk)
        old = lax.stop_gradient(scores.log_probs) if batch.old_log_probs is None else batch.old_log_probs
        kl = None if batch.reference is None else self.policy.kl(scores.distributions, batch.reference)
        terms = action_terms(scores.log_probs, old, kl, batch.advantages, self.settings)
        sums = jnp.stack([x.sum() for x in (terms.policy, terms.kl, scores.entropy, terms.clipped)])
        reported = LossSums(lax.stop_gradient(sums), self.target_counts(batch), self.terms)
        return Loss((sums * scales).sum(), reported)


def make_policy(config: ModelConfig, rl: PolicyOptimization) -> ImagePolicy:
    """Makes the policy of a model family.

    Raises:
      JanusError: A JanusFlow model has no VAE.
    """
    if isinstance(config, JanusConfig):
        distribution = TokenDistribution()
        if rl.log_probs == "guided":
            distribution = TokenDistribution(rl.guidance_scale, rl.temperature)
        return TokenPolicy(distribution, TokenSampler(rl.guidance_scale, rl.temperature))
    make_image_sampler(config)
    return FlowPolicy(rl.guidance_scale, rl.flow)


def make_policy_objective(config: ModelConfig, execution: Execution, rl: PolicyOptimization) -> PolicyObjective:
    """Makes the objective of a stage with reinforcement learning.

    Raises:
      JanusError: A JanusFlow model has no VAE.
    """
    return PolicyObjective(make_model(config, execution), rl.loss, make_policy(config, rl))


def reference_params(params: Params) -> Params:
    """Returns the parameters of the reference: the initial values of trained parameters, and no adapters.

    Args:
      params: All parameters of the state, with the reference's under `REFERENCE` if parameters other than adapters are
        trained.
    """
    model, _ = split_adapters({name: part for name, part in params.items() if name != REFERENCE})
    return unflatten_dict(flatten_dict(model) | flatten_dict(params.get(REFERENCE, {})))
