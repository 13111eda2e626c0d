"""Drawing images: id after id with classifier-free guidance, in one loop on the device.

Janus (arXiv 2410.13848, §3.2, inference): guided logits are u + s (c - u), with c the logits after the prompt and u
those after the prompt with its text replaced by padding. The two rows of a pair lie next to each other, so that a
batch that is sharded over its rows never parts them.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from janus_jax.batch import Batch
from janus_jax.config import ModelConfig
from janus_jax.generation.image_sampler import Report, check_guidance, guide, pictures, repeat_cache, repeat_prompts
from janus_jax.generation.padding import CACHE_STEP, round_up
from janus_jax.generation.sampling import SamplingConfig, SamplingParams, Strategy, check_sampled, draw
from janus_jax.models.backbone import Backbone, Params, apply
from janus_jax.models.llama import KVCache, grow_cache
from janus_jax.processing import Processor, TokenSequence
from janus_jax.sharding import on_host


@dataclass(frozen=True)
class TokenSampler:
    """Image ids, one after the other.

    Attributes:
      guidance_scale: weight of the condition (the paper's 5); 1 leaves guidance out, and is twice as fast.
      temperature, top_k, top_p: see `SamplingConfig`.

    Raises:
      JanusError: a setting is out of its range.
    """

    guidance_scale: float = 5.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    unit: ClassVar[str] = "id"

    def __post_init__(self) -> None:
        check_guidance(self.guidance_scale)
        _ = self.sampling  # Which refuses what is out of its range.

    @property
    def sampling(self) -> SamplingConfig:
        """How each id is drawn."""
        return SamplingConfig(self.temperature, self.top_k, self.top_p)

    def num_steps(self, config: ModelConfig) -> int:
        """See `ImageSampler`."""
        return config.gen_tokens

    def rows(self, processor: Processor, prompts: Sequence[TokenSequence]) -> list[TokenSequence]:
        """See `ImageSampler`: with guidance, each prompt followed by its unconditional twin."""
        if self.guidance_scale == 1:
            return list(prompts)
        return [row for prompt in prompts for row in (prompt, processor.unconditional_sequence(prompt))]

    def draw(
        self, model: Backbone, params: Params, prompts: Batch, keys: Key[Array, "P N"], report: Report | None
    ) -> Int[Array, "P*N T"]:
        """See `ImageSampler`; gives ids."""
        return sample_image_tokens(model, params, prompts, keys, self.sampling, self.guidance_scale, report)

    def render(
        self, model: Backbone, params: Params, drawn: Int[Array, "R T"], batch_size: int
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """See `ImageSampler`."""
        return tokens_to_images(model, params, drawn, batch_size)


class ImageDecodeState(NamedTuple):
    """R images in the making, P prompts of N images each; Q rows a prompt are 2 with guidance, 1 without.

    Attributes:
      ids: drawn so far, then zeros.
      drawn: number of ids drawn, the same for all images.
      cache: of the R * Q rows, the pair of one image next to each other.
      positions: of each row's next place.
      keys: one an image.
    """

    ids: Int[Array, "R T"]
    drawn: Int[Array, ""]
    cache: KVCache
    positions: Int[Array, " R*Q"]
    keys: Key[Array, " R"]


def sample_image_tokens(
    model: Backbone,
    params: Params,
    prompts: Batch,
    keys: Key[Array, "P N"],
    sampling: SamplingConfig,
    guidance_scale: float,
    report: Report | None = None,
    report_every: int = 24,
) -> Int[Array, "P*N T"]:
    """Ids of N images for each of P prompts.

    Args:
      prompts: left-padded prompts that end in begin-of-image. With a guidance scale of 1, P rows; otherwise 2 P rows,
        each prompt followed by its unconditional twin.
      keys: one an image.
      report: called with the number of ids drawn a image since the last call, about every `report_every` ids.
    """
    num_tokens = model.config.gen_tokens
    length = prompts.shape[1]
    last = length + num_tokens - 1
    slots = min(round_up(length + 1, CACHE_STEP), last)
    knobs, strategy = sampling.params, sampling.strategy
    state = start(model, params, prompts, keys, knobs, guidance_scale, slots, strategy)
    drawn = 1
    if report is not None:
        report(drawn)
    while drawn < num_tokens:
        if length + drawn > slots:
            slots = min(slots + CACHE_STEP, last)
            state = _grow(state, slots)
        # Each id but the last takes a slot.
        steps = min(slots - (length + drawn - 1), num_tokens - drawn)
        if report is not None:
            steps = min(steps, report_every)
        state = advance(model, params, state, knobs, guidance_scale, steps, strategy)
        drawn += steps
        if report is not None:
            # The device runs behind: a report is worth something only once the ids are there.
            state.ids.block_until_ready()
            report(steps)
    return state.ids


@functools.partial(jax.jit, static_argnames=("model", "slots", "strategy"))
def start(
    model: Backbone,
    params: Params,
    prompts: Batch,
    keys: Key[Array, "P N"],
    knobs: SamplingParams,
    guidance_scale: float,
    slots: int,
    strategy: Strategy,
) -> ImageDecodeState:
    """Runs the prompts and draws the first id of each image; the cache has room for `slots` places."""
    hidden, cache = apply(model.prefill, params, prompts, slots)
    num_prompts, per_prompt = keys.shape

    def repeat(x: Array) -> Array:
        return repeat_prompts(x, num_prompts, per_prompt)

    cache = repeat_cache(cache, num_prompts, per_prompt)
    positions = repeat(prompts.positions[:, -1] + 1)
    keys = keys.reshape(-1)
    first = _draw_ids(model, params, repeat(hidden[:, -1]), keys, 0, knobs, guidance_scale, strategy)
    ids = jnp.zeros((keys.shape[0], model.config.gen_tokens), jnp.int32).at[:, 0].set(first)
    return ImageDecodeState(ids, jnp.asarray(1, jnp.int32), cache, positions, keys)


@functools.partial(jax.jit, static_argnames=("model", "strategy"), donate_argnames=("state",))
def advance(
    model: Backbone,
    params: Params,
    state: ImageDecodeState,
    knobs: SamplingParams,
    guidance_scale: float,
    steps: int,
    strategy: Strategy,
) -> ImageDecodeState:
    """Draws `steps` more ids an image; how many is no part of the compiled program."""
    rows = state.positions.shape[0] // state.ids.shape[0]

    def step(_: int, state: ImageDecodeState) -> ImageDecodeState:
        last = jax.lax.dynamic_index_in_dim(state.ids, state.drawn - 1, axis=1)
        x = apply(model.embed_image_ids, params, jnp.repeat(last, rows, axis=0))
        places = jnp.ones_like(state.positions)[:, None]
        hidden, cache = apply(model.extend, params, x, state.positions[:, None], places, state.cache)
        new = _draw_ids(model, params, hidden[:, 0], state.keys, state.drawn, knobs, guidance_scale, strategy)
        ids = jax.lax.dynamic_update_index_in_dim(state.ids, new, state.drawn, axis=1)
        return ImageDecodeState(ids, state.drawn + 1, cache, state.positions + 1, state.keys)

    return jax.lax.fori_loop(0, steps, step, state)


@functools.partial(jax.jit, static_argnames=("slots",))
def _grow(state: ImageDecodeState, slots: int) -> ImageDecodeState:
    return state._replace(cache=grow_cache(state.cache, slots))


def _draw_ids(
    model: Backbone,
    params: Params,
    hidden: Float[Array, "R*Q D"],
    keys: Key[Array, " R"],
    step: Int[Array, ""] | int,
    knobs: SamplingParams,
    guidance_scale: float,
    strategy: Strategy,
) -> Int[Array, " R"]:
    logits = apply(model.image_logits, params, hidden)
    return draw(guide(logits, keys.shape[0], guidance_scale), keys, step, knobs, strategy)


def tokens_to_images(
    model: Backbone, params: Params, ids: Int[Array, "R T"], batch_size: int = 8
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The pictures of ids, 0..255, `batch_size` on the device at a time.

    Raises:
      JanusError: ids are missing, because the model's logits were not numbers.
    """
    check_sampled(on_host(ids))
    yield from pictures(model.detokenize, params, ids, batch_size)
