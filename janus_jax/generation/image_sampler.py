"""What all ways of drawing have in common: the protocol that they follow, and guidance."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped, UInt8

from janus_jax.batch import Batch
from janus_jax.config import ModelConfig
from janus_jax.errors import JanusError
from janus_jax.models.backbone import Backbone, Params, apply, to_images
from janus_jax.models.llama import KVCache
from janus_jax.processing import Processor, TokenSequence
from janus_jax.sharding import on_host

KV_AXES = ("batch", "kv_heads", "length", "head_dim")

Report = Callable[[int], None]
"""Called with the number of steps, of every image, that were made since the last call."""


class ImageSampler(Protocol):
    """One way to draw, with its settings, which are its fields: id after id, or along a flow.

    Attributes:
      unit: what it counts its steps in.
    """

    unit: ClassVar[str]

    def num_steps(self, config: ModelConfig) -> int:
        """Steps that one image takes."""
        ...

    def rows(self, processor: Processor, prompts: Sequence[TokenSequence]) -> list[TokenSequence]:
        """The rows that the prompts, each of which ends in begin-of-image, are drawn with."""
        ...

    def draw(
        self, model: Backbone, params: Params, prompts: Batch, keys: Key[Array, "P N"], report: Report | None
    ) -> Shaped[Array, "P*N ..."]:
        """N images for each of P prompts, not yet as pixels.

        Args:
          prompts: `rows`, left-padded.
          keys: one an image; what it draws depends on nothing else in the batch.
        """
        ...

    def render(
        self, model: Backbone, params: Params, drawn: Shaped[Array, "R ..."], batch_size: int
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The pictures of what was drawn, 0..255, `batch_size` on the device at a time.

        Raises:
          JanusError: what was drawn are no numbers.
        """
        ...


def check_guidance(guidance_scale: float) -> None:
    """Refuses what no guidance can be weighed with.

    Raises:
      JanusError: it is out of its range.
    """
    if not 0 <= guidance_scale <= 1e6:
        raise JanusError(f"guidance_scale is {guidance_scale}; it must be from 0 to 1e6.")


def guide(outputs: Float[Array, "R*Q ..."], num_images: int, guidance_scale: float) -> Float[Array, "R ..."]:
    """u + s (c - u) where the rows are pairs (c, u); the outputs themselves where they are not."""
    if outputs.shape[0] == num_images:
        return outputs
    pairs = outputs.reshape(num_images, 2, *outputs.shape[1:])
    conditional, unconditional = pairs[:, 0], pairs[:, 1]
    return unconditional + guidance_scale * (conditional - unconditional)


def repeat_prompts(x: Shaped[Array, "P*Q ..."], num_prompts: int, per_prompt: int) -> Shaped[Array, "P*N*Q ..."]:
    """Each prompt's Q rows (a pair, with guidance) once for each of its N images."""
    x = x.reshape(num_prompts, 1, -1, *x.shape[1:])
    return jnp.broadcast_to(x, (num_prompts, per_prompt, *x.shape[2:])).reshape(-1, *x.shape[3:])


def repeat_cache(cache: KVCache, num_prompts: int, per_prompt: int) -> KVCache:
    """`repeat_prompts` for all that a prompt has left behind: it runs once, however many images it draws."""

    def repeat(x: Array) -> Array:
        return repeat_prompts(x, num_prompts, per_prompt)

    layers = jax.tree.map(lambda kv: nn.with_logical_constraint(repeat(kv), KV_AXES), cache.layers)
    return KVCache(layers, repeat(cache.segment_ids), cache.length)


Decode = Callable[[Array], Float[Array, "B H W 3"]]


@functools.partial(jax.jit, static_argnames="decode")
def _pictures(decode: Decode, params: Params, drawn: Shaped[Array, "B ..."]) -> UInt8[Array, "B H W 3"]:
    return to_images(apply(decode, params, drawn))


def pictures(
    decode: Decode, params: Params, drawn: Shaped[Array, "R ..."], batch_size: int
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The pictures of what was drawn, 0..255, `batch_size` on the device at a time.

    Args:
      decode: Method of the model that maps samples to pixels.
    """
    for start in range(0, drawn.shape[0], batch_size):
        yield from on_host(_pictures(decode, params, drawn[start : start + batch_size]))
