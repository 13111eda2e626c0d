"""Layout of Janus in transformers (`JanusForConditionalGeneration`).

The understanding encoder stores queries, keys and values in three matrices. There is neither an attention pool nor a
codebook counter. transformers supports fewer model configs than janus_jax; writing an unsupported one is an error.
"""

from typing import Any

from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.layout import Layout, Shapes
from checkpoints_convert.parts import (
    llama_from_json,
    llama_table,
    transformers_siglip_table,
    transformers_vq_table,
)
from checkpoints_convert.released import llama_to_json
from janus_jax.config import JanusConfig, SiglipConfig, VQConfig
from janus_jax.errors import JanusError

_NORM_GROUPS = 32
"""Groups of each norm in transformers' image tokenizer. This number and the epsilon of 1e-6 are constants there."""


def config_from_json(json: JsonObject, shapes: Shapes) -> JanusConfig:
    """Returns the config in transformers' config.json, in which fields with their default value are absent.

    The fields `name` and `conversation` have their default values.

    Raises:
      JanusError: config.json describes another network. The message names the field.
    """
    vision, vq = json.object("vision_config"), json.object("vq_config")
    # In transformers one field sets the activation of encoder and adaptor. The adaptor needs the exact GELU.
    vision.require("hidden_act", "gelu")
    vision.require("use_qk_norm", False)
    vision.require("attention_bias", True)
    vision.require("depth", 2)
    vq.require("num_hidden_layers", 2)
    vq.require("hidden_act", "gelu")
    vq.require("double_latent", False)
    llm = llama_from_json(json.required_object("text_config"))
    width = vision.get("hidden_size", 1024)
    und_encoder = SiglipConfig(
        image_size=vision.get("image_size", 384),
        patch_size=vision.get("patch_size", 16),
        width=width,
        depth=vision.get("num_hidden_layers", 24),
        num_heads=vision.get("num_attention_heads", 16),
        mlp_dim=int(width * vision.get("mlp_ratio", 4.0)),
        layer_norm_eps=vision.get("layer_norm_eps", 1e-6),
    )
    multipliers = vq.get("channel_multiplier", (1, 1, 2, 2, 4))
    side = und_encoder.image_size // und_encoder.patch_size
    return JanusConfig(
        und_encoder=und_encoder,
        gen_encoder=VQConfig(
            # In transformers a target image has as many tokens as an input image has patches.
            image_size=side * 2 ** (len(multipliers) - 1),
            codebook_size=vq.get("num_embeddings", 16384),
            code_dim=vq.get("embed_dim", 8),
            base_channels=vq.get("base_channels", 128),
            channel_multipliers=multipliers,
            num_res_blocks=vq.get("num_res_blocks", 2),
            z_channels=vq.get("latent_channels", 256),
        ),
        llm=llm,
        gen_head_width=vq.get("projection_dim", 2048),
    )


def config_to_json(config: JanusConfig, dtype: str, image_token_id: int) -> dict[str, Any]:
    """Returns the content of transformers' config.json.

    Raises:
      JanusError: transformers' network cannot run the model. The message gives the reasons.
    """
    if limits := _unsupported(config):
        raise JanusError(f"transformers' Janus cannot run {config.name}: {'; '.join(limits)}. Use --layout released.")
    encoder, vq, width = config.und_encoder, config.gen_encoder, config.llm.width
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "model_type": "janus",
        "torch_dtype": dtype,
        "image_token_id": image_token_id,
        "tie_word_embeddings": False,
        "text_config": llama_to_json(config.llm, dtype) | {"tie_word_embeddings": False},
        "vision_config": {
            "model_type": "janus_vision_model",
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.num_heads,
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "num_image_tokens": encoder.num_patches,
            "hidden_act": "gelu",
            "layer_norm_eps": encoder.layer_norm_eps,
            "mlp_ratio": encoder.mlp_dim / encoder.width,
            "attention_bias": True,
            "use_qk_norm": False,
            "depth": 2,
            "projection_dim": width,
        },
        "vq_config": {
            "model_type": "janus_vqgan",
            "num_embeddings": vq.codebook_size,
            "embed_dim": vq.code_dim,
            "base_channels": vq.base_channels,
            "channel_multiplier": list(vq.channel_multipliers),
            "num_res_blocks": vq.num_res_blocks,
            "latent_channels": vq.z_channels,
            "double_latent": False,
            "num_patches": vq.grid_size,
            "hidden_act": "gelu",
            "num_hidden_layers": 2,
            "projection_dim": width,
            "image_token_embed_dim": width,
        },
    }


def _unsupported(config: JanusConfig) -> list[str]:
    encoder, vq = config.und_encoder, config.gen_encoder
    mlp_ratio = encoder.mlp_dim / encoder.width
    found = {
        f"the GELU of its encoder is {encoder.gelu}, not exact": encoder.gelu != "exact",
        f"mlp_dim {encoder.mlp_dim} is not the width times a ratio": int(encoder.width * mlp_ratio) != encoder.mlp_dim,
        f"the norms of its image tokenizer have {vq.norm_groups} groups, not {_NORM_GROUPS}": vq.norm_groups
        != _NORM_GROUPS,
        f"the norms of its image tokenizer have epsilon {vq.norm_eps}, not 1e-06": vq.norm_eps != 1e-6,
        f"gen_head_width {config.gen_head_width} is not the LLM's width {config.llm.width}": (
            config.gen_head_width != config.llm.width
        ),
        f"a target image has {vq.num_tokens} tokens and an input image {encoder.num_patches} patches": (
            vq.num_tokens != encoder.num_patches
        ),
        f"input images pass through its {config.understanding_encoder}": config.understanding_encoder != "und_encoder",
    }
    return [limit for limit, broken in found.items() if broken]


LAYOUT = Layout(
    "transformers",
    {
        **transformers_siglip_table("model.vision_model.", "projection_layer"),
        "und_adaptor/fc1": "model.aligner.fc1",
        "und_adaptor/fc2": "model.aligner.hidden_layers.0",
        **transformers_vq_table("model.vqmodel."),
        "gen_embed": "model.generation_embeddings",
        "gen_adaptor/fc1": "model.generation_aligner.fc1",
        "gen_adaptor/fc2": "model.generation_aligner.hidden_layers.0",
        "gen_head/fc1": "model.generation_head.proj_out",
        "gen_head/fc2": "model.generation_head.vision_head",
        **llama_table("model.language_model.", "lm_head"),
    },
    config_from_json,
    config_to_json,
    unused=(r".*rotary_emb\.inv_freq", r".*position_ids"),
    tied={"lm_head.weight": "model.language_model.embed_tokens.weight"},
)
