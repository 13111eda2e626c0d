"""CLIP (arXiv 2103.00020): unit embeddings of images and texts, for scoring. The parameters are not trained.

The functions take tensors under their names in transformers' files, in the same orientation.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from janus_jax.errors import JanusError
from janus_jax.files import checked_tensor

Activation = Literal["quick_gelu", "gelu"]
Tensors = Mapping[str, Float[Array, "..."]]

_SOURCE = "CLIP in the layout of transformers"
# Defaults of transformers for fields that config.json omits.
_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_BOTH = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_Value = TypeVar("_Value", int, float, str)


@dataclass(frozen=True)
class Tower:
    """One of the two transformers.

    Attributes:
      prefix: Prefix of its tensor names.
      width: Size of the hidden states.
      mlp_dim: Hidden size of the MLPs.
    """

    prefix: str
    width: int
    mlp_dim: int
    num_heads: int
    depth: int
    activation: Activation
    eps: float


@dataclass(frozen=True)
class CLIPConfig:
    """Architecture of both transformers.

    Attributes:
      embed_dim: Size of the embeddings.
      image_size, patch_size: Width and height of an image and of a patch in pixels.
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
    """Returns the architecture that the content of a config.json describes.

    Raises:
      JanusError: A value has the wrong type, or the activation is unknown.
    """
    text, vision = (values.get(f"{name}_config") or {} for name in ("text", "vision"))
    return CLIPConfig(
        text=_tower("text_model", _TEXT | _BOTH | text),
        vision=_tower("vision_model", _VISION | _BOTH | vision),
        embed_dim=_field(values, "projection_dim", 512),
        image_size=_field(vision, "image_size", 224),
        patch_size=_field(vision, "patch_size", 32),
        vocab_size=_field(text, "vocab_size", 49408),
        max_positions=_field(text, "max_position_embeddings", 77),
    )


def _tower(prefix: str, values: Mapping[str, Any]) -> Tower:
    activation = _field(values, "hidden_act", "")
    if activation not in get_args(Activation):
        raise JanusError(f"hidden_act is {activation!r}; it must be one of {', '.join(get_args(Activation))}.")
    return Tower(
        prefix,
        width=_field(values, "hidden_size", 0),
        mlp_dim=_field(values, "intermediate_size", 0),
        num_heads=_field(values, "num_attention_heads", 0),
        depth=_field(values, "num_hidden_layers", 0),
        activation=cast(Activation, activation),
        eps=_field(values, "layer_norm_eps", 0.0),
    )


def _field(values: Mapping[str, Any], name: str, default: _Value) -> _Value:
    value = values.get(name, default)
    if isinstance(default, str):
        valid, expected = isinstance(value, str), "text"
    else:
        valid, expected = isinstance(value, int | float) and value > 0, "a positive number"
    if not valid:
        raise JanusError(f"{name} is {value!r}; expected {expected}.")
    return type(default)(value)


def tensor_shapes(config: CLIPConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the name and shape of every tensor that the embeddings need."""
    text, vision, patch = config.text, config.vision, config.patch_size
    yield "text_model.embeddings.token_embedding.weight", (config.vocab_size, text.width)
    yield "text_model.embeddings.position_embedding.weight", (config.max_positions, text.width)
    yield "vision_model.embeddings.class_embedding", (vision.width,)
    yield "vision_model.embeddings.patch_embedding.weight", (vision.width, 3, patch, patch)
    yield "vision_model.embeddings.position_embedding.weight", ((config.image_size // patch) ** 2 + 1, vision.width)
    yield "text_projection.weight", (config.embed_dim, text.width)
    yield "visual_projection.weight", (config.embed_dim, vision.width)
    norms = ["text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    for tower in (text, vision):
        for layer in range(tower.depth):
            name = f"{tower.prefix}.encoder.layers.{layer}"
            norms += [f"{name}.layer_norm1", f"{name}.layer_norm2"]
            for linear in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield f"{name}.self_attn.{linear}.weight", (tower.width, tower.width)
                yield f"{name}.self_attn.{linear}.bias", (tower.width,)
            yield f"{name}.mlp.fc1.weight", (tower.mlp_dim, tower.width)
            yield f"{name}.mlp.fc1.bias", (tower.mlp_dim,)
            yield f"{name}.mlp.fc2.weight", (tower.width, tower.mlp_dim)
            yield f"{name}.mlp.fc2.bias", (tower.width,)
    for norm in norms:
        width = text.width if norm.startswith(text.prefix) else vision.width
        yield f"{norm}.weight", (width,)
        yield f"{norm}.bias", (width,)


def clip_params(tensors: Mapping[str, np.ndarray], config: CLIPConfig) -> dict[str, np.ndarray]:
    """Selects the tensors that the embeddings need, in float32.

    Raises:
      JanusError: A tensor is missing or has another shape.
    """
    return {name: checked_tensor(tensors, name, shape, _SOURCE) for name, shape in tensor_shapes(config)}


@functools.partial(jax.jit, static_argnames="config")
def embed_images(tensors: Tensors, pixels: Float[Array, "B S S 3"], config: CLIPConfig) -> Float[Array, "B E"]:
    """Computes unit embeddings of images.

    Args:
      pixels: Images, normalized with CLIP's mean and standard deviation.
    """
    name = "vision_model.embeddings"
    patches = lax.conv_general_dilated(
        pixels,
        tensors[f"{name}.patch_embedding.weight"],
        (config.patch_size, config.patch_size),
        "VALID",
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    x = patches.reshape(len(pixels), -1, config.vision.width)
    class_token = jnp.broadcast_to(tensors[f"{name}.class_embedding"], (len(pixels), 1, config.vision.width))
    x = jnp.concatenate([class_token, x], axis=1) + tensors[f"{name}.position_embedding.weight"]
    x = _norm(tensors, "vision_model.pre_layrnorm", x, config.vision.eps)
    x = _blocks(tensors, config.vision, x, jnp.ones((x.shape[1], x.shape[1]), bool))
    x = _norm(tensors, "vision_model.post_layernorm", x[:, 0], config.vision.eps)
    return _normalize(_matmul(x, tensors["visual_projection.weight"]))


@functools.partial(jax.jit, static_argnames="config")
def embed_texts(
    tensors: Tensors, ids: Int[Array, "B L"], last: Int[Array, " B"], config: CLIPConfig
) -> Float[Array, "B E"]:
    """Computes unit embeddings of texts.

    Args:
      last: Position of each text's end-of-text token. Later positions have no effect.
    """
    name = "text_model.embeddings"
    x = tensors[f"{name}.token_embedding.weight"][ids]
    x = x + tensors[f"{name}.position_embedding.weight"][: ids.shape[1]]
    x = _blocks(tensors, config.text, x, jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool)))
    x = x[jnp.arange(len(ids)), last]
    x = _norm(tensors, "text_model.final_layer_norm", x, config.text.eps)
    return _normalize(_matmul(x, tensors["text_projection.weight"]))


def _blocks(
    tensors: Tensors, tower: Tower, x: Float[Array, "B L D"], mask: Bool[Array, "L L"]
) -> Float[Array, "B L D"]:
    for layer in range(tower.depth):
        name = f"{tower.prefix}.encoder.layers.{layer}"
        x = x + _attention(tensors, tower, name, _norm(tensors, f"{name}.layer_norm1", x, tower.eps), mask)
        h = _linear(tensors, f"{name}.mlp.fc1", _norm(tensors, f"{name}.layer_norm2", x, tower.eps))
        h = h * jax.nn.sigmoid(1.702 * h) if tower.activation == "quick_gelu" else jax.nn.gelu(h, approximate=False)
        x = x + _linear(tensors, f"{name}.mlp.fc2", h)
    return x


def _attention(
    tensors: Tensors, tower: Tower, name: str, x: Float[Array, "B L D"], mask: Bool[Array, "L L"]
) -> Float[Array, "B L D"]:
    shape = (*x.shape[:2], tower.num_heads, -1)
    q, k, v = (_linear(tensors, f"{name}.self_attn.{part}_proj", x).reshape(shape) for part in "qkv")
    logits = jnp.einsum("bqhk,bshk->bhqs", q, k, precision=lax.Precision.HIGHEST) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
    y = jnp.einsum("bhqs,bshk->bqhk", weights, v, precision=lax.Precision.HIGHEST)
    return _linear(tensors, f"{name}.self_attn.out_proj", y.reshape(x.shape))


def _linear(tensors: Tensors, name: str, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
    return _matmul(x, tensors[f"{name}.weight"]) + tensors[f"{name}.bias"]


def _matmul(x: Float[Array, "... D"], weight: Float[Array, "E D"]) -> Float[Array, "... E"]:
    return jnp.einsum("...d,ed->...e", x, weight, precision=lax.Precision.HIGHEST)


def _norm(tensors: Tensors, name: str, x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    scaled = centered * lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + eps)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def _normalize(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
