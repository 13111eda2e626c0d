"""The released layout: deepseek-ai's Janus and Janus-Pro folders, names and config.json, both ways.

config.json nests one object per part, each with `cls` and `params`; the language part is a LlamaConfig without its
defaults. What it does not state (the image tokenizer's sizes, for one) is read off the tensors' shapes. For models
that are no SigLIP-L and no VQ-16, `params` carries further fields, written only where they differ:
`vision_config.params`: `width, heads, mlp_dim, patch_size, gelu`; `gen_vision_config.params`: `image_size, ch,
ch_mult, num_res_blocks, z_channels, norm_groups`; and the top level says `conversation`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from checkpoints_convert.jsons import Section
from checkpoints_convert.layout import Layout
from checkpoints_convert.parts import (
    Shapes,
    infer_siglip,
    infer_vq,
    llama_config,
    llama_table,
    shape_of,
    timm_siglip_table,
    vq_table,
)
from checkpoints_convert.tree import Shape, leaves
from janus_jax.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.errors import JanusError

_TOWER = "vision_model.vision_tower."
_VQ = "gen_vision_model."
_COUNTER = f"{_VQ}quantize.codebook_used"
_COUNTER_LENGTH = 65536
"""The released counter's own length, whatever the codebook's size."""

LAYOUT = Layout(
    "released",
    {
        **timm_siglip_table(_TOWER),
        "und_adaptor/fc1": "aligner.layers.0",
        "und_adaptor/fc2": "aligner.layers.2",
        **vq_table(_VQ),
        "gen_embed": "gen_embed",
        "gen_adaptor/fc1": "gen_aligner.layers.0",
        "gen_adaptor/fc2": "gen_aligner.layers.2",
        "gen_head/fc1": "gen_head.output_mlp_projector",
        "gen_head/fc2": "gen_head.vision_head",
        **llama_table("language_model.model.", "language_model.lm_head"),
    },
    dropped=(r"vision_model\.vision_tower\.attn_pool\..*", r"gen_vision_model\.quantize\.codebook_used", r".*inv_freq"),
)


def unused(config: JanusConfig) -> dict[str, Shape]:
    """Name and shape of the tensors that released files hold and no Janus model uses."""
    return attention_pool(config.und_encoder, _TOWER) | {_COUNTER: (_COUNTER_LENGTH,)}


def attention_pool(config: SiglipConfig, prefix: str) -> dict[str, Shape]:
    """Name and shape of the tensors of the pooling head that comes with SigLIP's tower."""
    width, mlp_dim, pool = config.width, config.mlp_dim, f"{prefix}attn_pool."
    return {
        f"{pool}latent": (1, 1, width),
        f"{pool}q.weight": (width, width),
        f"{pool}q.bias": (width,),
        f"{pool}kv.weight": (2 * width, width),
        f"{pool}kv.bias": (2 * width,),
        f"{pool}proj.weight": (width, width),
        f"{pool}proj.bias": (width,),
        f"{pool}norm.weight": (width,),
        f"{pool}norm.bias": (width,),
        f"{pool}mlp.fc1.weight": (mlp_dim, width),
        f"{pool}mlp.fc1.bias": (mlp_dim,),
        f"{pool}mlp.fc2.weight": (width, mlp_dim),
        f"{pool}mlp.fc2.bias": (width,),
    }


def manifest(config: JanusConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of a released file of that model, the unused ones included."""
    return LAYOUT.manifest(leaves(config)) | unused(config)


_SIGLIP_L = SiglipConfig()
_VQ_16 = VQConfig()
_MODEL_NAME = "siglip_large_patch16_384"


def read_config(file: Section, shapes: Shapes) -> JanusConfig:
    """A released config.json, with what it does not state read off the tensors' shapes.

    The model's name and its conversation are left at their defaults.

    Raises:
      JanusError: it describes another network; the message names the field.
    """
    file.section("vision_config").require("cls", "CLIPVisionTower")
    file.section("gen_vision_config").require("cls", "VQ-16")
    for aligner in ("aligner_config", "gen_aligner_config"):
        params = file.section(aligner).section("params")
        params.require("projector_type", "mlp_gelu")
        params.require("depth", 2)
    und_encoder = read_und_encoder(file.section("vision_config").section("params"), shapes, _TOWER)
    params = file.section("gen_vision_config").section("params")
    inferred = infer_vq(shapes, _VQ, replace(_VQ_16, norm_groups=params.get("norm_groups", _VQ_16.norm_groups)))
    gen_encoder = replace(
        inferred,
        image_size=params.get("image_size", und_encoder.image_size),
        codebook_size=params.get("image_token_size", inferred.codebook_size),
        code_dim=params.get("n_embed", inferred.code_dim),
        base_channels=params.get("ch", inferred.base_channels),
        channel_multipliers=params.get("ch_mult", inferred.channel_multipliers),
        num_res_blocks=params.get("num_res_blocks", inferred.num_res_blocks),
        z_channels=params.get("z_channels", inferred.z_channels),
    )
    llm = llama_config(file.section("language_config"))
    head = file.section("gen_head_config").section("params")
    (inferred_width,) = shape_of(shapes, "gen_head.output_mlp_projector.bias", (llm.width,))
    return JanusConfig(
        und_encoder=und_encoder,
        gen_encoder=gen_encoder,
        llm=llm,
        gen_head_width=head.get("image_token_embed", inferred_width),
    )


def read_und_encoder(params: Section, shapes: Shapes, prefix: str) -> SiglipConfig:
    """The understanding encoder, from the `params` of its section.

    Args:
      prefix: of its tensors' names.

    Raises:
      JanusError: it is another network; the message names the field.
    """
    params.require("select_feature", "same")
    if not params.get("model_name", _MODEL_NAME).startswith("siglip_large_"):
        raise JanusError(f"{params.where}: model_name is {params.values['model_name']!r}; only SigLIP-L is known.")
    params.require("gelu", "exact", "tanh")
    inferred = infer_siglip(shapes, prefix, replace(_SIGLIP_L, gelu=params.get("gelu", "exact")))
    # The reference cuts the tower when it builds it, so the file holds the kept blocks alone.
    layers, select = params.get("layers", _SIGLIP_L.depth), params.get("select_layer", -1)
    width = params.get("width", inferred.width)
    return replace(
        inferred,
        image_size=params.get("image_size", inferred.image_size),
        patch_size=params.get("patch_size", inferred.patch_size),
        width=width,
        depth=min(layers, select) if select > 0 else min(layers, layers + select + 1),
        num_heads=params.get("heads", _SIGLIP_L.num_heads),
        mlp_dim=params.get("mlp_dim", int(width * params.get("mlp_ratio", 0.0)) or inferred.mlp_dim),
    )


def write_config(config: JanusConfig, dtype: str) -> dict[str, Any]:
    """The released config.json of that model.

    Raises:
      JanusError: the layout has no way to say what this model is.
    """
    if config.understands_by != "und_encoder":
        raise JanusError(
            f"The released layout cannot say that {config.name} understands by its {config.understands_by}; keep it as "
            f"it is, a folder that `janus_jax.load` reads."
        )
    width, vq = config.llm.width, config.gen_encoder
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": dtype,
        "conversation": config.conversation,
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": write_und_encoder(config.und_encoder),
        },
        "aligner_config": _aligner("aligner", config.und_encoder.width, width),
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": _gen_vision_params(vq, config.und_encoder.image_size),
        },
        "gen_aligner_config": _aligner("gen_aligner", vq.code_dim, width),
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {
                "image_token_embed": config.gen_head_width,
                "image_token_size": vq.codebook_size,
                "n_embed": width,
            },
        },
        "language_config": write_llama_config(config.llm, dtype),
    }


def _aligner(kind: str, inputs: int, outputs: int) -> dict[str, Any]:
    params = {"depth": 2, "input_dim": inputs, "n_embed": outputs, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": kind, "params": params}


def differing(fields: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """The values that are not the defaults beside them."""
    return {name: value for name, (value, default) in fields.items() if value != default}


def write_und_encoder(config: SiglipConfig) -> dict[str, Any]:
    """The `params` that `read_und_encoder` reads."""
    layers = max(config.depth, _SIGLIP_L.depth)
    return {
        "image_size": config.image_size,
        "model_name": _MODEL_NAME,
        "select_feature": "same",
        "select_layer": config.depth - layers - 1,
    } | differing(
        {
            "layers": (layers, _SIGLIP_L.depth),
            "width": (config.width, _SIGLIP_L.width),
            "heads": (config.num_heads, _SIGLIP_L.num_heads),
            "mlp_dim": (config.mlp_dim, _SIGLIP_L.mlp_dim),
            "patch_size": (config.patch_size, _SIGLIP_L.patch_size),
            "gelu": (config.gelu, _SIGLIP_L.gelu),
        }
    )


def _gen_vision_params(config: VQConfig, und_image_size: int) -> dict[str, Any]:
    return {"image_token_size": config.codebook_size, "n_embed": config.code_dim} | differing(
        {
            "image_size": (config.image_size, und_image_size),
            "ch": (config.base_channels, _VQ_16.base_channels),
            "ch_mult": (list(config.channel_multipliers), list(_VQ_16.channel_multipliers)),
            "num_res_blocks": (config.num_res_blocks, _VQ_16.num_res_blocks),
            "z_channels": (config.z_channels, _VQ_16.z_channels),
            "norm_groups": (config.norm_groups, _VQ_16.norm_groups),
        }
    )


def write_llama_config(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """A transformers LlamaConfig, without what is at its default."""
    return {
        "model_type": "llama",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_positions,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.depth,
        "num_key_value_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "torch_dtype": dtype,
    } | differing(
        {
            "head_dim": (config.head_dim, config.width // config.num_heads),
            "rms_norm_eps": (config.rms_norm_eps, 1e-6),
            "rope_theta": (config.rope_theta, 10000.0),
        }
    )
