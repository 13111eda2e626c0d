"""What Janus and JanusFlow share: the understanding encoder, the transformer and the text head.

They differ in how an image to generate comes into the transformer and out of it. Whatever reads or writes text asks
for no more than this.
"""

from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import Execution, ModelConfig
from janus_jax.models.llama import KVCache, Llama, stack_layers, unstack_layers
from janus_jax.models.siglip import Siglip, stack_blocks, unstack_blocks

Args = TypeVarTuple("Args")
T = TypeVar("T")

Params = dict[str, Any]
"""A parameter tree or one of its subtrees."""

TEXT_HEAD = ("llm", "head")
"""Path of all parameters that `Backbone.text_logits` reads."""


def to_pixels(images: UInt8[Array, "*B H W 3"]) -> Float[Array, "*B H W 3"]:
    """Pixels in [-1, 1] from images in 0..255."""
    return images.astype(jnp.float32) * (2 / 255) - 1


def to_images(pixels: Float[Array, "*B H W 3"]) -> UInt8[Array, "*B H W 3"]:
    """Images in 0..255 from pixels in [-1, 1]; what lies beyond is clipped, what lies between is cut off.

    Cut off and not rounded, as the reference does when it writes its pictures.
    """
    return jnp.clip((pixels.astype(jnp.float32) + 1) / 2 * 255, 0, 255).astype(jnp.uint8)


def fill(x: Float[Array, "B L D"], images: Float[Array, "B M D"], places: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    """Puts row-local image embeddings into the places that name them."""
    filled = jnp.take_along_axis(images.astype(x.dtype), jnp.maximum(places, 0)[..., None], axis=1)
    return jnp.where((places == NO_IMAGE)[..., None], x, filled)


class Backbone(nn.Module):
    """A model that reads rows of places and writes text; a kind of model adds how it embeds them all (`embed`)."""

    config: ModelConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        self.und_encoder = Siglip(self.config.und_encoder, self.execution)
        self.llm = self._make_llm()

    def _make_llm(self) -> Llama:
        return Llama(self.config.llm, self.execution)

    def understand(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """Embeddings of images to understand, pixels in [-1, 1], patches row by row."""
        raise NotImplementedError

    def embed(self, batch: Batch) -> Float[Array, "B L D"]:
        """Fills each place of a batch with its embedding."""
        raise NotImplementedError

    def embed_text(self, ids: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
        """Embeddings of text ids."""
        return self.llm.embed(ids)

    def embed_read(self, batch: Batch) -> Float[Array, "B L D"]:
        """The places of text and of images to understand; those of images to generate are still to be filled."""
        x = self.embed_text(batch.tokens)
        if batch.und_images.shape[1]:
            rows, images = batch.und_images.shape[:2]
            features = self.understand(to_pixels(batch.und_images.reshape(-1, *batch.und_images.shape[2:])))
            x = fill(x, features.reshape(rows, images * features.shape[1], -1), batch.und_patch_index)
        return x

    def __call__(self, batch: Batch) -> Float[Array, "B L D"]:
        """Hidden states of every place, which the heads read."""
        hidden, _ = self.llm(self.embed(batch), batch.positions, batch.segment_ids)
        return hidden

    def prefill(self, batch: Batch, slots: int) -> tuple[Float[Array, "B L D"], KVCache]:
        """Hidden states of prompts, and a cache of `slots` slots that begins with them."""
        return self.llm.prefill(self.embed(batch), batch.positions, batch.segment_ids, slots)

    def extend(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"], cache: KVCache
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Hidden states of T more embedded places, and the cache with them."""
        hidden, extended = self.llm(x, positions, segment_ids, cache)
        assert extended is not None
        return hidden, extended

    def text_logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Logits over the text vocabulary, float32."""
        return self.llm.logits(hidden)

    def touch(self, batch: Batch) -> Any:
        """Runs every part once, which is what `init` needs to make every parameter."""
        raise NotImplementedError


def unroll_params(params: Params, config: ModelConfig) -> Params:
    """Parameters in the form that `Execution.layers` "unrolled" reads, from that of training and checkpoints."""
    return params | {
        "und_encoder": unstack_blocks(params["und_encoder"], config.und_encoder),
        "llm": unstack_layers(params["llm"], config.llm),
    }


def scan_params(params: Params, config: ModelConfig) -> Params:
    """The inverse of `unroll_params`."""
    return params | {
        "und_encoder": stack_blocks(params["und_encoder"], config.und_encoder),
        "llm": stack_layers(params["llm"], config.llm),
    }


def apply(method: Callable[[*Args], T], params: Params, *args: *Args) -> T:
    """Calls a method of a model with these parameters: `apply(model.embed, params, batch)`.

    Args:
      method: Bound method of a flax module; `model.__call__` for the model itself.
      params: Parameters of that module.
    """
    model: nn.Module = method.__self__  # type: ignore[attr-defined]
    result: T = model.apply({"params": params}, *args, method=method)  # type: ignore[assignment]
    return result
