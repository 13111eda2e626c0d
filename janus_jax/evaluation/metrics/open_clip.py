"""Weight files of open_clip (OpenCLIP, arXiv 2212.07143; HPSv2, arXiv 2306.09341) as parameters of `CLIP`."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from janus_jax.errors import JanusError
from janus_jax.evaluation.metrics.clip import CLIPConfig, Tower, clip_shapes
from janus_jax.evaluation.metrics.torch_params import Shapes, load_params

_EXPECTED = "CLIP in the layout of open_clip"

# In both transformers.
_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_NAMES = {
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")

VIT_H_14: Mapping[str, Any] = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
"""Architecture of LAION's ViT-H/14, on which HPSv2 and HPSv2.1 are trained."""


def open_clip_config(values: Mapping[str, Any]) -> CLIPConfig:
    """Returns the architecture that `model_cfg` of an open_clip_config.json describes.

    Raises:
      JanusError: A field is missing or not a number, or the architecture is not a plain CLIP with a vision transformer.
    """
    vision, text = values.get("vision_cfg", {}), values.get("text_cfg", {})
    if "timm_model_name" in vision or "hf_model_name" in text or not isinstance(vision.get("layers", 0), int):
        raise JanusError("The model is not a CLIP with two plain transformers; use a ViT model of open_clip.")
    try:
        activation = "quick_gelu" if values.get("quick_gelu") else "gelu"
        vision_heads = int(vision["width"]) // int(vision.get("head_width", 64))
        return CLIPConfig(
            text=_tower("text_model", text, int(text["heads"]), activation),
            vision=_tower("vision_model", vision, vision_heads, activation),
            embed_dim=int(values["embed_dim"]),
            image_size=int(vision["image_size"]),
            patch_size=int(vision["patch_size"]),
            vocab_size=int(text.get("vocab_size", 49408)),
            max_positions=int(text.get("context_length", 77)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise JanusError(f"model_cfg has no valid {error}; fetch open_clip_config.json again.") from error


def _tower(prefix: str, values: Mapping[str, Any], num_heads: int, activation: str) -> Tower:
    width = int(values["width"])
    mlp_dim = int(width * values.get("mlp_ratio", 4.0))
    return Tower(prefix, width, mlp_dim, num_heads, int(values["layers"]), 1e-5, activation)


def open_clip_params(tensors: Mapping[str, np.ndarray], config: CLIPConfig) -> dict[str, Any]:
    """Returns the parameters of `CLIP` from the tensors of a weight file of open_clip.

    Raises:
      JanusError: A tensor is missing or has another shape.
    """
    shapes: Shapes = {}
    for path, shape in clip_shapes(config).items():
        name = ".".join(path)
        if (part := _projection(name)) is not None:
            stacked, _ = part
            shapes[(stacked,)] = (3 * shape[0], *shape[1:])
        else:
            shapes[(_source(name),)] = shape[::-1] if name in _TRANSPOSED else shape
    found = load_params(tensors, shapes, _EXPECTED)
    params: dict[str, Any] = {}
    for path in clip_shapes(config):
        name = ".".join(path)
        if (part := _projection(name)) is not None:
            stacked, index = part
            value = np.split(found[stacked], 3)[index]
        else:
            value = found[_source(name)]
        *outer, last = path
        node = params
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = value.T if name in _TRANSPOSED else value
    return params


def _source(name: str) -> str:
    """Returns the name in open_clip's file of a parameter that is stored as it is."""
    if match := _LAYER.fullmatch(name):
        tower, layer, part, kind = match.groups()
        return f"{_prefix(tower)}.{layer}.{_BLOCK[part]}.{kind}"
    return _TRANSPOSED.get(name) or _NAMES[name]


def _projection(name: str) -> tuple[str, int] | None:
    """Returns for a query, key or value projection the stacked tensor in open_clip's file, and its number there."""
    match = _LAYER.fullmatch(name)
    if match is None or not match[3].startswith("self_attn.") or match[3] == "self_attn.out_proj":
        return None
    tower, layer, part, kind = match.groups()
    number = "qkv".index(part.removeprefix("self_attn.")[0])
    return f"{_prefix(tower)}.{layer}.attn.in_proj_{kind}", number


def _prefix(tower: str) -> str:
    return "visual.transformer.resblocks" if tower == "vision" else "transformer.resblocks"
