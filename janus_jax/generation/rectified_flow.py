"""Drawing images along a flow: latents from noise to the image, with classifier-free guidance, in one loop.

JanusFlow (arXiv 2411.07975, §3.2, inference): dz/dt = v(z, t) from noise at t = 0 to the image at t = 1, in steps of
one length. Guided velocities are u + s (c - u), with c after the prompt and u after begin-of-sentence alone: the rest
of the prompt is masked and keeps its positions.

A step runs the transformer over the time's place and the latents' places. Keys and values of the prompt are computed
once, before the first: causal attention never lets them see what the steps change.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from janus_jax.batch import PADDING_SEGMENT, Batch
from janus_jax.config import ModelConfig
from janus_jax.errors import JanusError
from janus_jax.generation.image_sampler import Report, check_guidance, guide, pictures, repeat_cache, repeat_prompts
from janus_jax.models.backbone import Backbone, Params, apply
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.llama import KVCache
from janus_jax.processing import Processor, TokenSequence
from janus_jax.sharding import on_host

Sampler = Literal["euler", "midpoint", "heun"]

Field = Callable[[Float[Array, "R h w C"], Float[Array, ""]], Float[Array, "R h w C"]]
"""Velocities of latents at a time."""

MOST_STEPS = 100_000


@dataclass(frozen=True)
class FlowSampler:
    """Latents along a flow.

    Attributes:
      guidance_scale: weight of the condition (the paper's 2); 1 leaves guidance out, and is twice as fast.
      steps: from noise to image (the paper's 30).
      sampler: "euler", as in the paper; "midpoint" and "heun" follow the flow more closely and run the model twice a
        step.

    Raises:
      JanusError: a setting is out of its range.
    """

    guidance_scale: float = 2.0
    steps: int = 30
    sampler: Sampler = "euler"

    unit: ClassVar[str] = "step"

    def __post_init__(self) -> None:
        check_guidance(self.guidance_scale)
        if not isinstance(self.steps, int) or not 1 <= self.steps <= MOST_STEPS:
            raise JanusError(f"steps is {self.steps!r}; it must be a whole number from 1 to {MOST_STEPS}.")
        if self.sampler not in get_args(Sampler):
            raise JanusError(f"sampler is {self.sampler!r}; it must be one of {', '.join(get_args(Sampler))}.")

    def num_steps(self, config: ModelConfig) -> int:
        """See `ImageSampler`."""
        return self.steps

    def rows(self, processor: Processor, prompts: Sequence[TokenSequence]) -> list[TokenSequence]:
        """See `ImageSampler`: the prompts alone, whose unconditional twins are their own rows under a mask."""
        return list(prompts)

    def draw(
        self, model: Backbone, params: Params, prompts: Batch, keys: Key[Array, "P N"], report: Report | None
    ) -> Float[Array, "P*N h w C"]:
        """See `ImageSampler`; gives scaled latents."""
        assert isinstance(model, JanusFlow)
        return sample_latents(model, params, prompts, keys, self, report)

    def render(
        self, model: Backbone, params: Params, drawn: Float[Array, "R h w C"], batch_size: int
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """See `ImageSampler`."""
        assert isinstance(model, JanusFlow)
        return latents_to_images(model, params, drawn, batch_size)


class Prompted(NamedTuple):
    """What prompts leave to the images after them, for R images of Q rows: 2 with guidance, 1 without.

    Attributes:
      cache: keys and values of the prompts, with slots for an image; the next is that of begin-of-image, which the
        image's time takes over.
      positions: of the image's time.
    """

    cache: KVCache
    positions: Int[Array, " R*Q"]


def sample_latents(
    model: JanusFlow,
    params: Params,
    prompts: Batch,
    keys: Key[Array, "P N"],
    drawing: FlowSampler,
    report: Report | None = None,
    report_every: int = 5,
    noise: Float[Array, "P*N h w C"] | None = None,
) -> Float[Array, "P*N h w C"]:
    """Latents of N images for each of P prompts, scaled as the flow moves them.

    Args:
      prompts: P left-padded prompts that end in begin-of-image.
      keys: one an image.
      report: called with the number of steps made since the last call, about every `report_every` steps; the loop on
        the device then runs as many at a time, and otherwise all.
      noise: where to begin, in place of what the keys give.
    """
    prompted = prefill(model, params, prompts, keys.shape[1], drawing.guidance_scale != 1)
    latents = sample_noise(model, keys.reshape(-1)) if noise is None else jnp.array(noise, jnp.float32)
    made = 0
    while made < drawing.steps:
        count = drawing.steps - made if report is None else min(report_every, drawing.steps - made)
        latents = advance(
            model, params, prompted, latents, drawing.guidance_scale, made, count, drawing.steps, drawing.sampler
        )
        made += count
        if report is not None:
            # The device runs behind: a report is worth something only once the steps are made.
            latents.block_until_ready()
            report(count)
    return latents


def without_condition(prompts: Batch) -> Batch:
    """The prompts with all but their first place masked; positions stay."""
    return prompts._replace(segment_ids=jnp.where(prompts.positions > 0, PADDING_SEGMENT, prompts.segment_ids))


@functools.partial(jax.jit, static_argnames=("model", "per_prompt", "guided"))
def prefill(model: JanusFlow, params: Params, prompts: Batch, per_prompt: int, guided: bool) -> Prompted:
    """Runs each prompt once, and with guidance once more without its condition."""
    num_prompts, length = prompts.shape
    if guided:
        # A pair lies side by side, so that a shard never parts it.
        pairs = jax.tree.map(lambda c, u: jnp.stack([c, u], axis=1), prompts, without_condition(prompts))
        prompts = jax.tree.map(lambda x: x.reshape(2 * num_prompts, *x.shape[2:]), pairs)
    _, cache = apply(model.prefill, params, prompts, length + model.config.gen_tokens)
    cache = repeat_cache(cache, num_prompts, per_prompt)
    positions = repeat_prompts(prompts.positions[:, -1], num_prompts, per_prompt)
    return Prompted(cache._replace(length=cache.length - 1), positions)


@functools.partial(jax.jit, static_argnames=("model",))
def sample_noise(model: JanusFlow, keys: Key[Array, " R"]) -> Float[Array, "R h w C"]:
    """Standard normal latents, one image a key."""
    return jax.vmap(lambda key: jax.random.normal(key, model.config.latent_shape))(keys)


def velocity(
    model: JanusFlow,
    params: Params,
    prompted: Prompted,
    latents: Float[Array, "R h w C"],
    time: Float[Array, ""],
    guidance_scale: float,
) -> Float[Array, "R h w C"]:
    """Guided velocities of latents after their prompts, all at one time."""
    images = latents.shape[0]
    rows = prompted.positions.shape[0] // images
    encoded = apply(model.encode, params, latents, jnp.full(images, time))
    # What goes in is the same for both rows of a pair: it is encoded once.
    x, encoded = jax.tree.map(
        lambda each: jnp.repeat(each, rows, axis=0), (apply(model.embed_encoded, params, encoded), encoded)
    )
    positions = prompted.positions[:, None] + jnp.arange(x.shape[1])
    hidden, _ = apply(model.extend, params, x, positions, jnp.ones_like(positions), prompted.cache)
    return guide(apply(model.velocity, params, hidden[:, 1:], encoded), images, guidance_scale)


@functools.partial(jax.jit, static_argnames=("model", "sampler"), donate_argnames=("latents",))
def advance(
    model: JanusFlow,
    params: Params,
    prompted: Prompted,
    latents: Float[Array, "R h w C"],
    guidance_scale: float,
    made: int,
    count: int,
    steps: int,
    sampler: Sampler,
) -> Float[Array, "R h w C"]:
    """`count` more of `steps` steps, after `made`; how many is no part of the compiled program."""

    def field(latents: Float[Array, "R h w C"], time: Float[Array, ""]) -> Float[Array, "R h w C"]:
        return velocity(model, params, prompted, latents, time, guidance_scale)

    def step(number: Int[Array, ""], latents: Float[Array, "R h w C"]) -> Float[Array, "R h w C"]:
        return SOLVERS[sampler](field, latents, number / steps, 1 / steps)

    return jax.lax.fori_loop(made, made + count, step, latents)


Solver = Callable[[Field, Array, Array, Array | float], Array]
"""One step along a field: from latents at a time to those a step later."""


def euler(field: Field, latents: Array, time: Array, step: Array | float) -> Array:
    """The velocity at the beginning, for the whole step."""
    return latents + step * field(latents, time)


def midpoint(field: Field, latents: Array, time: Array, step: Array | float) -> Array:
    """The velocity in the middle, where Euler's half step leads."""
    return latents + step * field(latents + step / 2 * field(latents, time), time + step / 2)


def heun(field: Field, latents: Array, time: Array, step: Array | float) -> Array:
    """The mean of the velocities at the beginning and at the end, where Euler's step leads."""
    first = field(latents, time)
    return latents + step / 2 * (first + field(latents + step * first, time + step))


SOLVERS: dict[Sampler, Solver] = {"euler": euler, "midpoint": midpoint, "heun": heun}


def latents_to_images(
    model: JanusFlow, params: Params, latents: Float[Array, "R h w C"], batch_size: int = 8
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The pictures of latents, 0..255, `batch_size` on the device at a time.

    Raises:
      JanusError: the latents are no numbers.
    """
    if not np.isfinite(on_host(latents)).all():
        raise JanusError("The latents are no numbers; the model's weights are damaged: convert or fetch them again.")
    yield from pictures(model.decode_latents, params, latents, batch_size)
