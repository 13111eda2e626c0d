"""The policy of JanusFlow: steps from noise to latents (Flow-GRPO, arXiv 2505.05470).

`generation.stochastic_flow` samples the steps and has their distribution. Log-probabilities, entropies and KL
divergences are means over the values of the latents, as in the public code of the paper, so that they do not depend on
the size of an image.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from janus_jax.batch import PADDING_SEGMENT, Batch
from janus_jax.config import ModelConfig
from janus_jax.generation.decode import guide, repeat_prompts
from janus_jax.generation.rectified_flow import FlowSampler, check_latents
from janus_jax.generation.stochastic_flow import sample_path, step_distribution
from janus_jax.models.backbone import Params, apply
from janus_jax.models.janusflow import JanusFlow
from janus_jax.training.rl.config import FlowSteps
from janus_jax.training.rl.policy import ImagePolicy, Samples, Scores, append_image_positions


class FlowTrajectories(NamedTuple):
    """B images on their way from noise to latents.

    Attributes:
      prompts: Left-padded prompt of each image, which ends with begin-of-image.
      latents: Latents before each of the first N steps, and after step N.
    """

    prompts: Batch
    latents: Float[Array, "B N+1 h w C"]


@dataclass(frozen=True)
class FlowPolicy(ImagePolicy):
    """Policy whose actions are the first steps of an image.

    Attributes:
      guidance_scale: Guidance scale of rollouts, log-probabilities and held-out images.
      steps: Steps and noise level.
    """

    guidance_scale: float
    steps: FlowSteps

    frozen_part = "vae"

    @property
    def sampler(self) -> FlowSampler:
        """See `ImagePolicy`. The sampler solves the ODE, with more steps than a rollout."""
        return FlowSampler(self.guidance_scale, self.steps.evaluation)

    def sample(self, model: Any, params: Params, prompts: Batch, keys: Key[Array, "P G"]) -> Samples:
        """See `ImagePolicy`."""
        path = sample_path(
            model,
            params,
            prompts,
            keys,
            steps=self.steps.rollout,
            guidance_scale=self.guidance_scale,
            noise_level=self.steps.noise_level,
        )
        check_latents(path[:, -1])
        prompts = _repeat(prompts, *keys.shape)
        return Samples(FlowTrajectories(prompts, path[:, : self.steps.num_trained + 1]), path[:, -1])

    def num_actions(self, trajectories: FlowTrajectories) -> int:
        """See `ImagePolicy`."""
        return self.steps.num_trained

    def score(self, model: Any, params: Params, trajectories: FlowTrajectories, chunk: int) -> Scores:
        """See `ImagePolicy`. The distributions are the means of the steps.

        One step of all images is in memory at a time: the backward pass computes it again.
        """
        sequences, num_steps = self._sequences(model, trajectories.prompts), self.steps.rollout

        def step(_: None, inputs: tuple[Array, Array, Array]) -> tuple[None, Scores]:
            latents, following, number = inputs
            time = number / num_steps
            velocities = self._velocities(model, params, sequences, latents, time)
            found = step_distribution(latents, velocities, time, 1 / num_steps, self.steps.noise_level)
            log_probs = found.log_prob(following)
            return None, Scores(log_probs, jnp.broadcast_to(found.entropy, log_probs.shape), found.mean)

        def split(x: Float[Array, "B N h w C"]) -> Float[Array, "N B h w C"]:
            return nn.with_logical_constraint(jnp.moveaxis(x, 1, 0), (None, "batch", None, None, None))

        latents = trajectories.latents
        inputs = split(latents[:, :-1]), split(latents[:, 1:]), jnp.arange(latents.shape[1] - 1)
        _, scores = lax.scan(jax.checkpoint(step), None, inputs)
        joined: Scores = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), scores)
        return joined._replace(entropy=lax.stop_gradient(joined.entropy))

    def kl(self, distributions: Float[Array, "B N h w C"], reference: Float[Array, "B N h w C"]) -> Float[Array, "B N"]:
        """Returns the KL divergence of normal distributions with equal standard deviations, per value.

        It is the squared distance of the means, divided by twice the variance.
        """
        numbers = jnp.arange(distributions.shape[1])
        std = jax.vmap(self._std)(numbers / self.steps.rollout)
        return jnp.square(distributions - reference).mean(axis=(2, 3, 4)) / (2 * jnp.square(std))

    def example(
        self, config: ModelConfig, prompt: Batch, count: int
    ) -> tuple[FlowTrajectories, Float[Array, "B N h w C"]]:
        """See `ImagePolicy`."""
        prompts = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), prompt)
        assert config.latent_shape is not None
        latents = jnp.zeros((count, self.steps.num_trained + 1, *config.latent_shape))
        return FlowTrajectories(prompts, latents), latents[:, 1:]

    def _std(self, time: Float[Array, ""]) -> Float[Array, ""]:
        zeros = jnp.zeros((1, 1, 1, 1))
        return step_distribution(zeros, zeros, time, 1 / self.steps.rollout, self.steps.noise_level).std

    def _sequences(self, model: JanusFlow, prompts: Batch) -> Batch:
        """Returns the sequences of images: of each image its own and, with guidance, its unconditional sequence."""
        batch = append_image_positions(prompts, model.config.num_gen_tokens)
        if self.guidance_scale == 1:
            return batch
        # As in sampling, the unconditional sequence has no token between the first and begin-of-image.
        length = prompts.shape[1]
        is_masked = (batch.positions > 0) & (jnp.arange(batch.shape[1]) < length - 1)
        unconditional = batch._replace(segment_ids=jnp.where(is_masked, PADDING_SEGMENT, batch.segment_ids))
        pairs = jax.tree.map(lambda c, u: jnp.stack([c, u], axis=1), batch, unconditional)
        flat: Batch = jax.tree.map(lambda x: x.reshape(2 * len(x), *x.shape[2:]), pairs)
        return flat

    def _velocities(
        self,
        model: JanusFlow,
        params: Params,
        sequences: Batch,
        latents: Float[Array, "B h w C"],
        time: Float[Array, ""],
    ) -> Float[Array, "B h w C"]:
        """Returns the guided velocities of the latents of B images at the same time."""
        count, rows = len(latents), sequences.shape[0]
        repeated = jnp.repeat(latents, rows // count, axis=0)[:, None]
        batch = sequences._replace(gen_latents=repeated, gen_times=jnp.full((rows, 1), time))
        velocities = apply(model.velocities, params, batch, apply(model.states, params, batch))
        return guide(velocities[:, 0], count, self.guidance_scale)


@functools.partial(jax.jit, static_argnames=("num_prompts", "per_prompt"))
def _repeat(prompts: Batch, num_prompts: int, per_prompt: int) -> Batch:
    """Repeats each prompt for its images."""
    repeated: Batch = jax.tree.map(lambda x: repeat_prompts(x, num_prompts, per_prompt), prompts)
    return repeated
