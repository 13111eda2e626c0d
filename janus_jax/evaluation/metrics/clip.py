"""CLIP (arXiv 2103.00020): a picture and a text as unit vectors. For judging pictures: it is read, and never trained.

Functions of the tensors by the names that transformers' files have, each tensor as it lies there.
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
from janus_jax.evaluation.metrics.weights import take

Activation = Literal["quick_gelu", "gelu"]
Tensors = Mapping[str, Float[Array, "..."]]

_FILE = "CLIP in transformers' layout"
# What transformers' files mean where their config says nothing.
_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_BOTH = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_Value = TypeVar("_Value", int, float, str)


@dataclass(frozen=True)
class Tower:
    """One of the two transformers.

    Attributes:
      prefix: of its tensors' names.
      width, hidden: of its places, and of its MLPs.
    """

    prefix: str
    width: int
    hidden: int
    heads: int
    depth: int
    activation: Activation
    eps: float


@dataclass(frozen=True)
class CLIPConfig:
    """Both towers.

    Attributes:
      projection: numbers of the vectors.
      side, patch: of a picture and of its patches, in pixels.
      vocab_size, positions: of the texts.
    """

    text: Tower
    vision: Tower
    projection: int
    side: int
    patch: int
    vocab_size: int
    positions: int


def clip_config(values: Mapping[str, Any]) -> CLIPConfig:
    """The content of a config.json.

    Raises:
      JanusError: a number is none, or the activation is not known.
    """
    text, vision = (values.get(f"{name}_config") or {} for name in ("text", "vision"))
    return CLIPConfig(
        text=_tower("text_model", _TEXT | _BOTH | text),
        vision=_tower("vision_model", _VISION | _BOTH | vision),
        projection=_field(values, "projection_dim", 512),
        side=_field(vision, "image_size", 224),
        patch=_field(vision, "patch_size", 32),
        vocab_size=_field(text, "vocab_size", 49408),
        positions=_field(text, "max_position_embeddings", 77),
    )


def _tower(prefix: str, values: Mapping[str, Any]) -> Tower:
    activation = _field(values, "hidden_act", "")
    if activation not in get_args(Activation):
        raise JanusError(f"hidden_act is {activation!r}; it must be one of {', '.join(get_args(Activation))}.")
    return Tower(
        prefix,
        width=_field(values, "hidden_size", 0),
        hidden=_field(values, "intermediate_size", 0),
        heads=_field(values, "num_attention_heads", 0),
        depth=_field(values, "num_hidden_layers", 0),
        activation=cast(Activation, activation),
        eps=_field(values, "layer_norm_eps", 0.0),
    )


def _field(values: Mapping[str, Any], name: str, default: _Value) -> _Value:
    value = values.get(name, default)
    fits = isinstance(value, str) if isinstance(default, str) else isinstance(value, int | float) and value > 0
    if not fits:
        raise JanusError(f"{name} is {value!r}; that is not what {_FILE} has there.")
    return type(default)(value)


def tensor_shapes(config: CLIPConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that is read."""
    text, vision = config.text, config.vision
    yield "text_model.embeddings.token_embedding.weight", (config.vocab_size, text.width)
    yield "text_model.embeddings.position_embedding.weight", (config.positions, text.width)
    yield "vision_model.embeddings.class_embedding", (vision.width,)
    yield "vision_model.embeddings.patch_embedding.weight", (vision.width, 3, config.patch, config.patch)
    yield "vision_model.embeddings.position_embedding.weight", ((config.side // config.patch) ** 2 + 1, vision.width)
    norms = ["text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    for tower in (text, vision):
        for layer in range(tower.depth):
            name = f"{tower.prefix}.encoder.layers.{layer}"
            norms += [f"{name}.layer_norm1", f"{name}.layer_norm2"]
            for linear in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield f"{name}.self_attn.{linear}.weight", (tower.width, tower.width)
                yield f"{name}.self_attn.{linear}.bias", (tower.width,)
            yield f"{name}.mlp.fc1.weight", (tower.hidden, tower.width)
            yield f"{name}.mlp.fc1.bias", (tower.hidden,)
            yield f"{name}.mlp.fc2.weight", (tower.width, tower.hidden)
            yield f"{name}.mlp.fc2.bias", (tower.width,)
        yield (
            f"{tower.prefix.removesuffix('_model').replace('vision', 'visual')}_projection.weight",
            (
                config.projection,
                tower.width,
            ),
        )
    for norm in norms:
        width = text.width if norm.startswith(text.prefix) else vision.width
        yield f"{norm}.weight", (width,)
        yield f"{norm}.bias", (width,)


def clip_params(tensors: Mapping[str, np.ndarray], config: CLIPConfig) -> dict[str, np.ndarray]:
    """What is read of a file's tensors, in float32.

    Raises:
      JanusError: a tensor is missing or misshapen.
    """
    return {name: take(tensors, name, shape, _FILE) for name, shape in tensor_shapes(config)}


@functools.partial(jax.jit, static_argnames="config")
def embed_pictures(tensors: Tensors, pixels: Float[Array, "B S S 3"], config: CLIPConfig) -> Float[Array, "B E"]:
    """The unit vectors of pictures, their pixels with CLIP's own mean and deviation."""
    name = "vision_model.embeddings"
    patches = lax.conv_general_dilated(
        pixels,
        tensors[f"{name}.patch_embedding.weight"],
        (config.patch, config.patch),
        "VALID",
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    x = patches.reshape(len(pixels), -1, config.vision.width)
    first = jnp.broadcast_to(tensors[f"{name}.class_embedding"], (len(pixels), 1, config.vision.width))
    x = jnp.concatenate([first, x], axis=1) + tensors[f"{name}.position_embedding.weight"]
    x = _norm(tensors, "vision_model.pre_layrnorm", x, config.vision.eps)
    x = _blocks(tensors, config.vision, x, jnp.ones((x.shape[1], x.shape[1]), bool))
    x = _norm(tensors, "vision_model.post_layernorm", x[:, 0], config.vision.eps)
    return _unit(_product(x, tensors["visual_projection.weight"]))


@functools.partial(jax.jit, static_argnames="config")
def embed_texts(
    tensors: Tensors, ids: Int[Array, "B L"], last: Int[Array, " B"], config: CLIPConfig
) -> Float[Array, "B E"]:
    """The unit vectors of texts.

    Args:
      last: where each one's end-of-text stands; what follows it does not count.
    """
    name = "text_model.embeddings"
    x = tensors[f"{name}.token_embedding.weight"][ids]
    x = x + tensors[f"{name}.position_embedding.weight"][: ids.shape[1]]
    x = _blocks(tensors, config.text, x, jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool)))
    x = x[jnp.arange(len(ids)), last]
    x = _norm(tensors, "text_model.final_layer_norm", x, config.text.eps)
    return _unit(_product(x, tensors["text_projection.weight"]))


def _blocks(
    tensors: Tensors, tower: Tower, x: Float[Array, "B L D"], mask: Bool[Array, "L L"]
) -> Float[Array, "B L D"]:
    for layer in range(tower.depth):
        name = f"{tower.prefix}.encoder.layers.{layer}"
        x = x + _attend(tensors, tower, name, _norm(tensors, f"{name}.layer_norm1", x, tower.eps), mask)
        h = _linear(tensors, f"{name}.mlp.fc1", _norm(tensors, f"{name}.layer_norm2", x, tower.eps))
        h = h * jax.nn.sigmoid(1.702 * h) if tower.activation == "quick_gelu" else jax.nn.gelu(h, approximate=False)
        x = x + _linear(tensors, f"{name}.mlp.fc2", h)
    return x


def _attend(
    tensors: Tensors, tower: Tower, name: str, x: Float[Array, "B L D"], mask: Bool[Array, "L L"]
) -> Float[Array, "B L D"]:
    q, k, v = (
        _linear(tensors, f"{name}.self_attn.{part}_proj", x).reshape(*x.shape[:2], tower.heads, -1) for part in "qkv"
    )
    logits = jnp.einsum("bqhk,bshk->bhqs", q, k, precision=lax.Precision.HIGHEST) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
    y = jnp.einsum("bhqs,bshk->bqhk", weights, v, precision=lax.Precision.HIGHEST)
    return _linear(tensors, f"{name}.self_attn.out_proj", y.reshape(x.shape))


def _linear(tensors: Tensors, name: str, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
    return _product(x, tensors[f"{name}.weight"]) + tensors[f"{name}.bias"]


def _product(x: Float[Array, "... D"], weight: Float[Array, "E D"]) -> Float[Array, "... E"]:
    return jnp.einsum("...d,ed->...e", x, weight, precision=lax.Precision.HIGHEST)


def _norm(tensors: Tensors, name: str, x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    scaled = centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def _unit(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
