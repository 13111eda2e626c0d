"""Base class of Janus and JanusFlow: understanding encoder, transformer and text head.

The two models differ in how target images enter and leave the transformer. Code that generates no images works with any
`Backbone`.
"""

from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import Execution, ModelConfig
from janus_jax.models.layers import stack_params, unstack_params
from janus_jax.models.llama import KVCache, Llama, stack_layers, unstack_layers
from janus_jax.models.siglip import Siglip

Args = TypeVarTuple("Args")
T = TypeVar("T")

Params = dict[str, Any]
"""A parameter tree or one of its subtrees."""

TEXT_HEAD = ("llm", "head")
"""Path of all parameters that `Backbone.text_logits` reads."""


def to_pixels(images: UInt8[Array, "*B H W 3"]) -> Float[Array, "*B H W 3"]:
    """Converts uint8 images to pixels in [-1, 1]."""
    return images.astype(jnp.float32) * (2 / 255) - 1


def to_images(pixels: Float[Array, "*B H W 3"]) -> UInt8[Array, "*B H W 3"]:
    """Converts pixels in [-1, 1] to uint8 images, clipping and truncating (not rounding) as the reference does."""
    return jnp.clip((pixels.astype(jnp.float32) + 1) / 2 * 255, 0, 255).astype(jnp.uint8)


def insert_images(
    x: Float[Array, "B L D"], images: Float[Array, "B M D"], index: Int[Array, "B L"]
) -> Float[Array, "B L D"]:
    """Inserts image embeddings into the embeddings of sequences.

    Where a position's index is not `NO_IMAGE`, replaces its embedding with the image embedding of the same sequence at
    that index.
    """
    inserted = jnp.take_along_axis(images.astype(x.dtype), jnp.maximum(index, 0)[..., None], axis=1)
    return jnp.where((index == NO_IMAGE)[..., None], x, inserted)


class Backbone(nn.Module):
    """Model of token sequences with input images and a text head.

    Subclasses define `embed_input_images`, `embed` and `init_all`.
    """

    config: ModelConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        self.und_encoder = Siglip(self.config.und_encoder, self.execution)
        self.llm = self._make_llm()

    def _make_llm(self) -> Llama:
        return Llama(self.config.llm, self.execution)

    def embed_input_images(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """Returns embeddings of input images with pixels in [-1, 1], patches in row-major order."""
        raise NotImplementedError

    def embed(self, batch: Batch) -> Float[Array, "B L D"]:
        """Returns the embedding of every position."""
        raise NotImplementedError

    def embed_text(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """Returns embeddings of text tokens."""
        return self.llm.embed(ids)

    def input_image_features(self, batch: Batch) -> Float[Array, "B U N D"]:
        """Returns the embeddings of the input images: precomputed, or from the understanding encoder."""
        if batch.und_features is not None:
            return batch.und_features
        batch_size, images = batch.und_images.shape[:2]
        features = self.embed_input_images(to_pixels(batch.und_images.reshape(-1, *batch.und_images.shape[2:])))
        return features.reshape(batch_size, images, *features.shape[1:])

    def embed_text_and_input_images(self, batch: Batch) -> Float[Array, "B L D"]:
        """Returns embeddings of text and input images.

        At the positions of target images it returns the embedding of the placeholder token.
        """
        x = self.embed_text(batch.tokens)
        if batch.num_input_images:
            features = self.input_image_features(batch)
            x = insert_images(x, features.reshape(len(features), -1, features.shape[-1]), batch.und_patch_index)
        return x

    def __call__(self, batch: Batch) -> Float[Array, "B L D"]:
        """Returns the hidden states of all positions: the inputs of the heads."""
        hidden, _ = self.llm(self.embed(batch), batch.positions, batch.segment_ids)
        return hidden

    def prefill(self, batch: Batch, slots: int) -> tuple[Float[Array, "B L D"], KVCache]:
        """Returns the hidden states of prompts, and a cache of `slots` slots with the prompts' keys and values."""
        return self.llm.prefill(self.embed(batch), batch.positions, batch.segment_ids, slots)

    def extend(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"], cache: KVCache
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Returns the hidden states of T new positions, and the cache extended by them.

        Args:
          x: Embeddings of the new positions.
          positions: Rotary positions of the new positions.
          segment_ids: Segment ids of the new positions.
          cache: Keys and values of the earlier positions.
        """
        hidden, extended = self.llm(x, positions, segment_ids, cache)
        assert extended is not None
        return hidden, extended

    def text_logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Returns logits over the text vocabulary, float32."""
        return self.llm.head(hidden)

    def init_all(self, batch: Batch) -> Any:
        """Runs every module once, so that `init` creates every parameter."""
        raise NotImplementedError


def unroll_params(params: Params, config: ModelConfig) -> Params:
    """Converts parameters from the layout of training and checkpoints to that of `Execution(layers="unrolled")`.

    The first layout stacks the layers of a transformer; the second has one subtree per layer.
    """
    return params | {
        "und_encoder": unstack_params(params["und_encoder"], "blocks", config.und_encoder.depth),
        "llm": unstack_layers(params["llm"], config.llm),
    }


def scan_params(params: Params, config: ModelConfig) -> Params:
    """Converts parameters back from the result of `unroll_params`."""
    return params | {
        "und_encoder": stack_params(params["und_encoder"], "blocks", config.und_encoder.depth),
        "llm": stack_layers(params["llm"], config.llm),
    }


def apply(method: Callable[[*Args], T], params: Params, *args: *Args) -> T:
    """Calls a method of a model with the given parameters: `apply(model.embed, params, batch)`.

    Args:
      method: Bound method of a flax module; `model.__call__` for the model itself.
      params: Parameters of that module.
    """
    model: nn.Module = method.__self__  # type: ignore[attr-defined]
    result: T = model.apply({"params": params}, *args, method=method)  # type: ignore[assignment]
    return result
