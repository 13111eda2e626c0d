"""Image generation by rectified flow, with classifier-free guidance (JanusFlow, arXiv 2411.07975, section 3.2).

The latents z of an image follow dz/dt = v(z, t) from noise at t = 0 to the image at t = 1, in equal steps. The guided
velocity is u + s (c - u), where s is the guidance scale. c is the velocity after the prompt. u is the velocity after
the unconditional sequence, in which all of the prompt except begin-of-sentence is masked.

Each step runs the transformer over the time token and the latent tokens. The keys and values of the prompt are computed
once, before the first step: attention is causal, so they do not depend on the latents.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from janus_jax.batch import PADDING_SEGMENT, Batch
from janus_jax.config import ModelConfig
from janus_jax.errors import JanusError
from janus_jax.generation.decode import check_guidance, guide, repeat_cache, repeat_prompts
from janus_jax.models.backbone import Backbone, Params, apply, to_images
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.llama import KVCache
from janus_jax.processing import Processor, TokenSequence
from janus_jax.sharding import to_host

Solver = Literal["euler", "midpoint", "heun"]

VelocityField = Callable[[Float[Array, "R h w C"], Float[Array, ""]], Float[Array, "R h w C"]]
"""Function from latents and a time to the velocities of the latents."""

MAX_STEPS = 100_000


@dataclass(frozen=True)
class FlowSampler:
    """Image sampler of JanusFlow: integrates latents from noise to images.

    Attributes:
      guidance_scale: Guidance scale; the paper uses 2. 1 disables guidance and halves the time.
      steps: Number of steps from noise to image; the paper uses 30.
      sampler: ODE solver: "euler", which the paper uses, or the second-order "midpoint" and "heun", which run the model
        twice per step.

    Raises:
      JanusError: A setting is out of range.
    """

    guidance_scale: float = 2.0
    steps: int = 30
    sampler: Solver = "euler"

    unit: ClassVar[str] = "step"

    def __post_init__(self) -> None:
        check_guidance(self.guidance_scale)
        if not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_STEPS:
            raise JanusError(f"steps is {self.steps!r}; it must be a whole number from 1 to {MAX_STEPS}.")
        if self.sampler not in get_args(Solver):
            raise JanusError(f"sampler is {self.sampler!r}; it must be one of {', '.join(get_args(Solver))}.")

    def num_steps(self, config: ModelConfig) -> int:
        """See `ImageSampler`."""
        return self.steps

    def prompt_sequences(self, processor: Processor, prompts: Sequence[TokenSequence]) -> list[TokenSequence]:
        """See `ImageSampler`. `prefill` adds the unconditional sequences."""
        return list(prompts)

    def sample(
        self,
        model: Backbone,
        params: Params,
        prompts: Batch,
        keys: Key[Array, "P N"],
        report: Callable[[int], object] | None = None,
    ) -> Float[Array, "P*N h w C"]:
        """See `ImageSampler`. Returns scaled latents.

        Raises:
          JanusError: The latents are not finite.
        """
        assert isinstance(model, JanusFlow)
        latents = sample_latents(model, params, prompts, keys, self, report=report)
        check_latents(latents)
        return latents

    def to_images(self, model: Backbone, params: Params, samples: Float[Array, "R h w C"]) -> UInt8[Array, "R H W 3"]:
        """See `ImageSampler`."""
        assert isinstance(model, JanusFlow)
        return latents_to_images(model, params, samples)


def check_latents(latents: Float[Array, "R h w C"]) -> None:
    """Checks that latents are finite.

    Raises:
      JanusError: They are not finite.
    """
    if not np.isfinite(to_host(latents)).all():
        raise JanusError(
            "The latents are not finite: a weight is not finite, because the training diverged or the file is "
            "damaged, or values exceed the range of the dtype; try float32, or convert or fetch the weights again."
        )


class PromptCache(NamedTuple):
    """Keys and values of the prompts of R images.

    Q is 2 with guidance (the prompt, then its unconditional sequence) and 1 without.

    Attributes:
      cache: Keys and values of the prompts, then empty slots for the tokens of one step. The time token replaces
        begin-of-image.
      positions: Rotary position of the time token.
    """

    cache: KVCache
    positions: Int[Array, " R*Q"]


def sample_latents(
    model: JanusFlow,
    params: Params,
    prompts: Batch,
    keys: Key[Array, "P N"],
    sampler: FlowSampler,
    *,
    report: Callable[[int], object] | None = None,
    report_every: int = 5,
    noise: Float[Array, "P*N h w C"] | None = None,
) -> Float[Array, "P*N h w C"]:
    """Returns the scaled latents of N images for each of P prompts.

    Args:
      model: The network.
      params: Parameters of the network.
      prompts: P left-padded prompts that end with begin-of-image.
      keys: Random key of each image.
      sampler: Guidance scale, number of steps and solver.
      report: Called every `report_every` steps with the number of steps since its last call.
      noise: Initial latents. Default: sampled with `keys`.
    """
    prompt_cache = prefill(model, params, prompts, keys.shape[1], sampler.guidance_scale != 1)
    latents = sample_noise(model, keys.reshape(-1)) if noise is None else jnp.array(noise, jnp.float32)
    start = 0
    while start < sampler.steps:
        count = sampler.steps - start if report is None else min(report_every, sampler.steps - start)
        interval = (start, start + count, sampler.steps)
        latents = integrate(
            model,
            params,
            prompt_cache,
            latents,
            interval,
            guidance_scale=sampler.guidance_scale,
            solver=sampler.sampler,
        )
        start += count
        if report is not None:
            # The device works asynchronously. Only finished steps are reported.
            latents.block_until_ready()
            report(count)
    return latents


@functools.partial(jax.jit, static_argnames=("model", "per_prompt", "guided"))
def prefill(model: JanusFlow, params: Params, prompts: Batch, per_prompt: int, guided: bool) -> PromptCache:
    """Runs the model once on each prompt and, with guidance, on its unconditional sequence."""
    num_prompts, length = prompts.shape
    if guided:
        # Masks all but the first token. The positions do not change.
        segment_ids = jnp.where(prompts.positions > 0, PADDING_SEGMENT, prompts.segment_ids)
        unconditional = prompts._replace(segment_ids=segment_ids)
        # The two are neighbors in the batch, so that sharding the batch never separates them.
        pairs = jax.tree.map(lambda c, u: jnp.stack([c, u], axis=1), prompts, unconditional)
        prompts = jax.tree.map(lambda x: x.reshape(2 * num_prompts, *x.shape[2:]), pairs)
    _, cache = apply(model.prefill, params, prompts, length + model.config.num_gen_tokens)
    cache = repeat_cache(cache, num_prompts, per_prompt)
    positions = repeat_prompts(prompts.positions[:, -1], num_prompts, per_prompt)
    return PromptCache(cache._replace(length=cache.length - 1), positions)


@functools.partial(jax.jit, static_argnames=("model",))
def sample_noise(model: JanusFlow, keys: Key[Array, " R"]) -> Float[Array, "R h w C"]:
    """Returns latents sampled from the standard normal distribution, with one key per image."""
    return jax.vmap(lambda key: jax.random.normal(key, model.config.latent_shape))(keys)


def velocity(
    model: JanusFlow,
    params: Params,
    prompt_cache: PromptCache,
    latents: Float[Array, "R h w C"],
    time: Float[Array, ""],
    *,
    guidance_scale: float,
) -> Float[Array, "R h w C"]:
    """Returns the guided velocities of the latents of R images, all at the same time."""
    images = latents.shape[0]
    per_image = prompt_cache.positions.shape[0] // images
    encoded = apply(model.encode, params, latents, jnp.full(images, time))
    # The sequence with the prompt and the unconditional sequence read the same latents, which are encoded once.
    x, encoded = jax.tree.map(
        lambda each: jnp.repeat(each, per_image, axis=0), (apply(model.embed_encoded, params, encoded), encoded)
    )
    positions = prompt_cache.positions[:, None] + jnp.arange(x.shape[1])
    hidden, _ = apply(model.extend, params, x, positions, jnp.ones_like(positions), prompt_cache.cache)
    return guide(apply(model.velocity, params, hidden[:, 1:], encoded), images, guidance_scale)


@functools.partial(jax.jit, static_argnames=("model", "solver"), donate_argnames=("latents",))
def integrate(
    model: JanusFlow,
    params: Params,
    prompt_cache: PromptCache,
    latents: Float[Array, "R h w C"],
    interval: tuple[Any, Any, Any],
    *,
    guidance_scale: float,
    solver: Solver,
) -> Float[Array, "R h w C"]:
    """Integrates latents over an interval of steps and returns the new latents.

    Args:
      interval: First step, end (exclusive), and number of steps from noise to image. All are dynamic arguments.
    """
    start, stop, steps = interval

    def field(latents: Float[Array, "R h w C"], time: Float[Array, ""]) -> Float[Array, "R h w C"]:
        return velocity(model, params, prompt_cache, latents, time, guidance_scale=guidance_scale)

    def step(number: Int[Array, ""], latents: Float[Array, "R h w C"]) -> Float[Array, "R h w C"]:
        return SOLVERS[solver](field, latents, number / steps, 1 / steps)

    return jax.lax.fori_loop(start, stop, step, latents)


def euler(field: VelocityField, latents: Array, time: Array, step: Array | float) -> Array:
    """Integrates over one step with the velocity at its start."""
    return latents + step * field(latents, time)


def midpoint(field: VelocityField, latents: Array, time: Array, step: Array | float) -> Array:
    """Integrates over one step with the velocity in the middle of an Euler step."""
    return latents + step * field(latents + step / 2 * field(latents, time), time + step / 2)


def heun(field: VelocityField, latents: Array, time: Array, step: Array | float) -> Array:
    """Integrates over one step with the mean of the velocities at both ends of an Euler step."""
    first = field(latents, time)
    return latents + step / 2 * (first + field(latents + step * first, time + step))


SOLVERS: dict[Solver, Callable[[VelocityField, Array, Array, Array | float], Array]] = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
}
"""Function of each solver that integrates over one step: `solver(field, latents, time, step)`, `step` in time units."""


@functools.partial(jax.jit, static_argnames=("model",))
def latents_to_images(model: JanusFlow, params: Params, latents: Float[Array, "R h w C"]) -> UInt8[Array, "R H W 3"]:
    """Decodes scaled latents to RGB images."""
    return to_images(apply(model.decode_latents, params, latents))
