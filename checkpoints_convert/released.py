"""The released layout: folders of Janus and Janus-Pro as deepseek-ai publishes them.

config.json nests one object per part, each with `cls` and `params`; the language part is a transformers LlamaConfig
without fields that have their default value. Sizes that config.json does not state, such as the image tokenizer's, are
inferred from the shapes of the tensors.

janus_jax writes further fields where a model differs from SigLIP-L or VQ-16: `layers, width, heads, mlp_dim,
patch_size, gelu` in `vision_config.params`, and `image_size, ch, ch_mult, num_res_blocks, z_channels, norm_groups` in
`gen_vision_config.params`. It always writes `conversation` at the top level.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.layout import Layout, Shapes
from checkpoints_convert.parameters import Shape, model_parameters
from checkpoints_convert.parts import (
    infer_siglip,
    infer_vq,
    llama_from_json,
    llama_table,
    shape_of,
    timm_siglip_table,
    vq_table,
)
from janus_jax.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.errors import JanusError

_SIGLIP_PREFIX = "vision_model.vision_tower."
_VQ_PREFIX = "gen_vision_model."
_COUNTER = f"{_VQ_PREFIX}quantize.codebook_used"
_COUNTER_LENGTH = 65536
"""Length of the counter in all released files. It does not depend on the size of the codebook."""

_SIGLIP_L = SiglipConfig()
_VQ_16 = VQConfig()
_MODEL_NAME = "siglip_large_patch16_384"


def unused_shapes(config: JanusConfig) -> dict[str, Shape]:
    """Returns names and shapes of the tensors that released files hold and Janus does not use."""
    return attention_pool(config.und_encoder, _SIGLIP_PREFIX) | {_COUNTER: (_COUNTER_LENGTH,)}


def attention_pool(config: SiglipConfig, prefix: str) -> dict[str, Shape]:
    """Returns names and shapes of the tensors of SigLIP's attention pooling head."""
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
    """Returns the names and shapes of all tensors of a released file, including unused tensors."""
    return LAYOUT.manifest(model_parameters(config)) | unused_shapes(config)


def config_from_json(json: JsonObject, shapes: Shapes) -> JanusConfig:
    """Returns the config that config.json describes. Sizes that it does not state are inferred from the shapes.

    The fields `name` and `conversation` have their default values.

    Raises:
      JanusError: config.json describes another network. The message names the field.
    """
    json.object("vision_config").require("cls", "CLIPVisionTower")
    json.object("gen_vision_config").require("cls", "VQ-16")
    for aligner in ("aligner_config", "gen_aligner_config"):
        params = json.object(aligner).object("params")
        params.require("projector_type", "mlp_gelu")
        params.require("depth", 2)
    und_encoder = siglip_from_json(json.object("vision_config").object("params"), shapes, _SIGLIP_PREFIX)
    params = json.object("gen_vision_config").object("params")
    inferred = infer_vq(shapes, _VQ_PREFIX, replace(_VQ_16, norm_groups=params.get("norm_groups", _VQ_16.norm_groups)))
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
    llm = llama_from_json(json.required_object("language_config"))
    head = json.object("gen_head_config").object("params")
    (inferred_width,) = shape_of(shapes, "gen_head.output_mlp_projector.bias", (llm.width,))
    return JanusConfig(
        und_encoder=und_encoder,
        gen_encoder=gen_encoder,
        llm=llm,
        gen_head_width=head.get("image_token_embed", inferred_width),
    )


def siglip_from_json(params: JsonObject, shapes: Shapes, prefix: str) -> SiglipConfig:
    """Returns the config in the `params` object of the understanding encoder.

    Args:
      prefix: Prefix of the encoder's tensor names.

    Raises:
      JanusError: The object describes another network. The message names the field.
    """
    params.require("select_feature", "same")
    if not params.get("model_name", _MODEL_NAME).startswith("siglip_large_"):
        raise JanusError(f"{params.where}: model_name is {params.values['model_name']!r}; only SigLIP-L is supported.")
    params.require("gelu", "exact", "tanh")
    inferred = infer_siglip(shapes, prefix, replace(_SIGLIP_L, gelu=params.get("gelu", "exact")))
    # The reference implementation drops the blocks after select_layer, so the file does not contain them.
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


def config_to_json(config: JanusConfig, dtype: str, image_token_id: int = 0) -> dict[str, Any]:
    """Returns the content of the released config.json, which has no field for `image_token_id`.

    Raises:
      JanusError: The layout cannot describe the model.
    """
    if config.understanding_encoder != "und_encoder":
        raise JanusError(
            f"The released layout cannot describe {config.name}, whose input images pass through "
            f"{config.understanding_encoder}; keep the converted folder, which `janus_jax.load` reads."
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
            "params": siglip_to_json(config.und_encoder),
        },
        "aligner_config": _aligner("aligner", config.und_encoder.width, width),
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": _vq_to_json(vq, config.und_encoder.image_size),
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
        "language_config": llama_to_json(config.llm, dtype),
    }


def _aligner(kind: str, inputs: int, outputs: int) -> dict[str, Any]:
    params = {"depth": 2, "input_dim": inputs, "n_embed": outputs, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": kind, "params": params}


def differing(fields: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Returns the values that differ from their defaults, by field name.

    Args:
      fields: (value, default) by field name.
    """
    return {name: value for name, (value, default) in fields.items() if value != default}


def siglip_to_json(config: SiglipConfig) -> dict[str, Any]:
    """Returns the `params` object that `siglip_from_json` reads."""
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


def _vq_to_json(config: VQConfig, und_image_size: int) -> dict[str, Any]:
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


def llama_to_json(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """Returns the object that `llama_from_json` reads, without fields that have their default value."""
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


LAYOUT = Layout(
    "released",
    {
        **timm_siglip_table(_SIGLIP_PREFIX),
        "und_adaptor/fc1": "aligner.layers.0",
        "und_adaptor/fc2": "aligner.layers.2",
        **vq_table(_VQ_PREFIX),
        "gen_embed": "gen_embed",
        "gen_adaptor/fc1": "gen_aligner.layers.0",
        "gen_adaptor/fc2": "gen_aligner.layers.2",
        "gen_head/fc1": "gen_head.output_mlp_projector",
        "gen_head/fc2": "gen_head.vision_head",
        **llama_table("language_model.model.", "language_model.lm_head"),
    },
    config_from_json,
    config_to_json,
    unused=(r"vision_model\.vision_tower\.attn_pool\..*", r"gen_vision_model\.quantize\.codebook_used", r".*inv_freq"),
    unused_shapes=unused_shapes,
    tied={"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"},
)
