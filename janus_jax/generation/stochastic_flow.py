"""Stochastic sampling of a rectified flow, whose steps have probabilities (Flow-GRPO, arXiv 2505.05470, section 4).

The ODE dz/dt = v(z, t), from noise at t = 0 to the image at t = 1, has the same marginal distributions as the SDE

    dz = (v + sigma^2 / 2 * score) dt + sigma dW,    score = -(z - t v) / (1 - t).

The score follows from z = t x + (1 - t) e: it is -E[e | z] / (1 - t), and E[e | z] = z - t v. With the noise level a,

    sigma(t) = a sqrt((1 - t) / t).

An Euler-Maruyama step of length d samples the next latents from a normal distribution with

    mean = z + d (v - a^2 / (2 t) (z - t v)),    std = a sqrt(d (1 - t) / t).

In the first step, where t = 0, the denominators have t = d instead, as in the public code of the paper. A noise level
of 0 is Euler's method for the ODE. The paper counts time from the image to the noise: its time is 1 - t, and its
velocity is -v. As there, v is the guided velocity.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from janus_jax.batch import Batch
from janus_jax.generation.rectified_flow import PromptCache, prefill, sample_noise, velocity
from janus_jax.models.backbone import Params
from janus_jax.models.janusflow import JanusFlow


class StepDistribution(NamedTuple):
    """Normal distribution of the latents after a step. All values of all latents have the same standard deviation."""

    mean: Float[Array, "R h w C"]
    std: Float[Array, ""]

    def log_prob(self, latents: Float[Array, "R h w C"]) -> Float[Array, " R"]:
        """Returns the log-density of latents, in nats per value: the mean over the values of an image."""
        squares = jnp.square((latents - self.mean) / self.std).mean(axis=(1, 2, 3))
        return -squares / 2 - jnp.log(self.std) - math.log(2 * math.pi) / 2

    @property
    def entropy(self) -> Float[Array, ""]:
        """The entropy in nats per value."""
        return jnp.log(self.std) + (1 + math.log(2 * math.pi)) / 2


def step_distribution(
    latents: Float[Array, "R h w C"],
    velocities: Float[Array, "R h w C"],
    time: Float[Array, ""],
    step: float,
    noise_level: float | Float[Array, ""],
) -> StepDistribution:
    """Returns the distribution of the latents after a step.

    Args:
      latents: Latents before the step.
      velocities: Their velocities.
      time: Time before the step.
      step: Length d of the step.
      noise_level: Noise level a.
    """
    strength = noise_level**2 / jnp.maximum(time, step)
    drift = velocities - strength / 2 * (latents - time * velocities)
    return StepDistribution(latents + step * drift, jnp.sqrt(strength * (1 - time) * step))


def sample_path(
    model: JanusFlow,
    params: Params,
    prompts: Batch,
    keys: Key[Array, "P N"],
    *,
    steps: int,
    guidance_scale: float,
    noise_level: float,
) -> Float[Array, "P*N S+1 h w C"]:
    """Samples the scaled latents of N images for each of P prompts.

    Args:
      model: The network.
      params: Parameters of the network.
      prompts: P left-padded prompts that end with begin-of-image.
      keys: Random key of each image. It determines the initial noise and that of each step, so that an image does not
        depend on the rest of the batch.
      steps: Number S of steps from noise to image.
      guidance_scale: Guidance scale.
      noise_level: Noise level a.

    Returns:
      The latents before each step, and those of the image.
    """
    cache = prefill(model, params, prompts, keys.shape[1], guidance_scale != 1)
    options = {"guidance_scale": guidance_scale, "noise_level": noise_level}
    return integrate_path(model, params, cache, keys.reshape(-1), steps=steps, **options)


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def integrate_path(
    model: JanusFlow,
    params: Params,
    prompt_cache: PromptCache,
    keys: Key[Array, " R"],
    *,
    steps: int,
    guidance_scale: Any,
    noise_level: Any,
) -> Float[Array, "R S+1 h w C"]:
    """Samples the latents of R images after prompts in a cache. See `sample_path`."""

    def step(latents: Float[Array, "R h w C"], number: Int[Array, ""]) -> tuple[Array, Array]:
        time = number / steps
        velocities = velocity(model, params, prompt_cache, latents, time, guidance_scale=guidance_scale)
        mean, std = step_distribution(latents, velocities, time, 1 / steps, noise_level)
        # The key itself samples the initial noise.
        noise = sample_noise(model, jax.vmap(lambda key: jax.random.fold_in(key, number))(keys))
        following = mean + std * noise
        return following, following

    start = nn.with_logical_constraint(sample_noise(model, keys), ("batch", None, None, None))
    _, path = lax.scan(step, start, jnp.arange(steps))
    return jnp.concatenate([start[:, None], jnp.moveaxis(path, 0, 1)], axis=1)
