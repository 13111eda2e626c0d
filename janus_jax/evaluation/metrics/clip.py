"""CLIP (arXiv 2103.00020), which embeds images and texts as unit vectors.

Parameters have the names and orientations of the weight files of Hugging Face transformers. They are always loaded from
such a file, so the initializers only declare shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from janus_jax.errors import JanusError
from janus_jax.evaluation.metrics.torch_params import load_params, param_shapes

ACTIVATIONS = ("quick_gelu", "gelu")

# Values that Hugging Face transformers uses for fields that config.json omits.
_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_BOTH = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}


@dataclass(frozen=True)
class Tower:
    """Architecture of the image or the text transformer. The names of its parameters start with `prefix`."""

    prefix: str
    width: int
    mlp_dim: int
    num_heads: int
    depth: int
    eps: float
    activation: str


@dataclass(frozen=True)
class CLIPConfig:
    """Architecture of a CLIP model.

    Attributes:
      text, vision: The two transformers.
      embed_dim: Size of the embeddings.
      image_size, patch_size: Width and height of images and patches in pixels.
      vocab_size: Number of text tokens.
      max_positions: Maximum length of a text in tokens.
    """

    text: Tower
    vision: Tower
    embed_dim: int
    image_size: int
    patch_size: int
    vocab_size: int
    max_positions: int


def clip_config(values: Mapping[str, Any]) -> CLIPConfig:
    """Returns the architecture that a config.json describes.

    Args:
      values: Content of the file.

    Raises:
      JanusError: A size is not a positive number, or the activation is unknown.
    """
    text, vision = (values.get(f"{name}_config") or {} for name in ("text", "vision"))
    return CLIPConfig(
        text=_tower("text_model", _TEXT | _BOTH | text),
        vision=_tower("vision_model", _VISION | _BOTH | vision),
        embed_dim=int(_number(values, "projection_dim", 512)),
        image_size=int(_number(vision, "image_size", 224)),
        patch_size=int(_number(vision, "patch_size", 32)),
        vocab_size=int(_number(text, "vocab_size", 49408)),
        max_positions=int(_number(text, "max_position_embeddings", 77)),
    )


def _tower(prefix: str, values: Mapping[str, Any]) -> Tower:
    activation = values["hidden_act"]
    if activation not in ACTIVATIONS:
        raise JanusError(f"hidden_act is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}.")
    return Tower(
        prefix,
        width=int(_number(values, "hidden_size")),
        mlp_dim=int(_number(values, "intermediate_size")),
        num_heads=int(_number(values, "num_attention_heads")),
        depth=int(_number(values, "num_hidden_layers")),
        eps=float(_number(values, "layer_norm_eps")),
        activation=activation,
    )


def _number(values: Mapping[str, Any], name: str, default: float = 0) -> float:
    value: Any = values.get(name, default)
    if not isinstance(value, int | float) or value <= 0:
        raise JanusError(f"{name} is {value!r}; expected a positive number.")
    return value


class Linear(nn.Module):
    """Linear layer whose weight has PyTorch's orientation: output features first."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        weight = self.param("weight", nn.initializers.zeros, (self.features, x.shape[-1]))
        y = jnp.einsum("...d,ed->...e", x, weight, precision=lax.Precision.HIGHEST)
        return y + self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else y


class Norm(nn.Module):
    """Layer normalization."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        weight = self.param("weight", nn.initializers.zeros, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        return centered * lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + self.eps) * weight + bias


class Block(nn.Module):
    """Transformer block with pre-normalization."""

    tower: Tower

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "L L"]) -> Float[Array, "B L D"]:
        c = self.tower
        h = Norm(c.eps, name="layer_norm1")(x)
        shape = (*x.shape[:2], c.num_heads, -1)
        q, k, v = (Linear(c.width, name=f"self_attn.{part}_proj")(h).reshape(shape) for part in "qkv")
        logits = jnp.einsum("bqhk,bshk->bhqs", q, k, precision=lax.Precision.HIGHEST) / np.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
        y = jnp.einsum("bhqs,bshk->bqhk", weights, v, precision=lax.Precision.HIGHEST)
        x = x + Linear(c.width, name="self_attn.out_proj")(y.reshape(x.shape))
        h = Linear(c.mlp_dim, name="mlp.fc1")(Norm(c.eps, name="layer_norm2")(x))
        h = h * jax.nn.sigmoid(1.702 * h) if c.activation == "quick_gelu" else jax.nn.gelu(h, approximate=False)
        return x + Linear(c.width, name="mlp.fc2")(h)


class CLIP(nn.Module):
    """Image encoder and text encoder."""

    config: CLIPConfig

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "B S S 3"], ids: Int[Array, "B L"], last: Int[Array, " B"]
    ) -> tuple[Float[Array, "B E"], Float[Array, "B E"]]:
        """Returns the embeddings of images and of texts, as unit vectors.

        Args:
          pixels: Images, normalized with CLIP's mean and standard deviation.
          ids: Text tokens.
          last: Position of the end-of-text token of each text. Later tokens have no effect.
        """
        return self._embed_images(pixels), self._embed_texts(ids, last)

    def _embed_images(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B E"]:
        c, patch, name = self.config.vision, self.config.patch_size, "vision_model.embeddings"
        kernel = self._embedding(f"{name}.patch_embedding.weight", (c.width, 3, patch, patch))
        patches = lax.conv_general_dilated(
            pixels,
            kernel,
            (patch, patch),
            "VALID",
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision=lax.Precision.HIGHEST,
        ).reshape(len(pixels), -1, c.width)
        class_token = jnp.broadcast_to(
            self._embedding(f"{name}.class_embedding", (c.width,)), (len(pixels), 1, c.width)
        )
        x = jnp.concatenate([class_token, patches], axis=1)
        x = x + self._embedding(f"{name}.position_embedding.weight", x.shape[1:])
        x = Norm(c.eps, name="vision_model.pre_layrnorm")(x)
        x = self._blocks(c, x, jnp.ones((x.shape[1], x.shape[1]), bool))[:, 0]
        return self._project(Norm(c.eps, name="vision_model.post_layernorm")(x), "visual_projection")

    def _embed_texts(self, ids: Int[Array, "B L"], last: Int[Array, " B"]) -> Float[Array, "B E"]:
        c, length, name = self.config.text, ids.shape[1], "text_model.embeddings"
        x = self._embedding(f"{name}.token_embedding.weight", (self.config.vocab_size, c.width))[ids]
        positions = self._embedding(f"{name}.position_embedding.weight", (self.config.max_positions, c.width))
        x = self._blocks(c, x + positions[:length], jnp.tril(jnp.ones((length, length), bool)))
        return self._project(
            Norm(c.eps, name="text_model.final_layer_norm")(x[jnp.arange(len(ids)), last]), "text_projection"
        )

    def _embedding(self, name: str, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return self.param(name, nn.initializers.zeros, shape)

    def _blocks(self, tower: Tower, x: Float[Array, "B L D"], mask: Bool[Array, "L L"]) -> Float[Array, "B L D"]:
        for layer in range(tower.depth):
            x = Block(tower, name=f"{tower.prefix}.encoder.layers.{layer}")(x, mask)
        return x

    def _project(self, x: Float[Array, "B D"], name: str) -> Float[Array, "B E"]:
        x = Linear(self.config.embed_dim, use_bias=False, name=name)(x)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def clip_shapes(config: CLIPConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Returns the shapes of CLIP's parameters by path."""
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, config.max_positions), jnp.int32)
    return param_shapes(CLIP(config), pixels, ids, jax.ShapeDtypeStruct((1,), jnp.int32))


def clip_params(tensors: Mapping[str, np.ndarray], config: CLIPConfig) -> dict[str, Any]:
    """Returns the parameters of `CLIP` from the tensors of a weight file of Hugging Face transformers.

    Raises:
      JanusError: A tensor is missing or has another shape.
    """
    return load_params(tensors, clip_shapes(config), "CLIP in the layout of transformers")
