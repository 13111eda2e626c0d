"""The released layout of JanusFlow, with its VAE in a separate folder.

config.json has the model_type `multi_modality`, as Janus does, and nests `vision_und_enc_config`,
`vision_gen_enc_config`, `vision_gen_dec_config` and `language_config`. The released file does not contain the VAE,
which is SDXL's in diffusers' layout. The VAE is in the folder `vae/` of the checkpoint or in a folder that the caller
passes. In the table, its tensors have the prefix `vae.`.

janus_jax writes further fields to the `params` of `vision_gen_enc_config` where a model differs from the released one:
`latent_size, depthwise_kernel_size, mlp_ratio`. It reads the top-level field `vae_id`, the hub id of the VAE.
"""

from typing import Any

from checkpoints_convert.diffusers_vae import DIFFUSERS_VAE, diffusers_vae_table
from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.layout import Layout, Shapes, Table, Tensor, pointwise
from checkpoints_convert.parameters import Shape, model_parameters
from checkpoints_convert.parts import count, llama_from_json, llama_table, shape_of, timm_siglip_table
from checkpoints_convert.released import (
    attention_pool,
    differing,
    llama_to_json,
    siglip_from_json,
    siglip_to_json,
)
from janus_jax.config import JanusFlowConfig, UViTConfig
from janus_jax.errors import JanusError

VAE_PREFIX = "vae."
VAE_FOLDER = "vae"
VAE_ID = "stabilityai/sdxl-vae"
"""Hub id of the VAE if config.json has no field `vae_id`. The released config does not name it (not verified)."""

_SIGLIP_PREFIX = "vision_und_enc_model.vision_tower."
_ENCODER = "vision_gen_enc_model."
_DECODER = "vision_gen_dec_model."
_RELEASED = UViTConfig()


def _convnext_table(module: str, prefix: str) -> Table:
    at, block = f"{module}/blocks_{{i}}", f"{prefix}mid_block.res_blocks.{{i}}."
    return {
        f"{at}/depthwise": f"{block}depthwise",
        f"{at}/norm": f"{block}norm",
        f"{at}/fc1": f"{block}channelwise_linear_1",
        f"{at}/response_norm/scale": Tensor(f"{block}channelwise_norm.weight", "c -> 1 1 1 c"),
        f"{at}/response_norm/bias": Tensor(f"{block}channelwise_norm.bias", "c -> 1 1 1 c"),
        f"{at}/fc2": f"{block}channelwise_linear_2",
        f"{at}/film": f"{block}cond_embeds_mapper",
    }


def unused_shapes(config: JanusFlowConfig) -> dict[str, Shape]:
    """Returns names and shapes of the tensors that released files hold and JanusFlow does not use."""
    return attention_pool(config.und_encoder, _SIGLIP_PREFIX)


def manifest(config: JanusFlowConfig) -> dict[str, Shape]:
    """Returns the names and shapes of all tensors of a released model, including unused tensors and the VAE's."""
    return LAYOUT.manifest(model_parameters(config)) | unused_shapes(config)


def config_from_json(json: JsonObject, shapes: Shapes) -> JanusFlowConfig:
    """Returns the config that config.json describes, without a VAE.

    Sizes that config.json does not state are inferred from the shapes. The name has its default value.

    Raises:
      JanusError: config.json describes another network. The message names the field.
    """
    und, encoder, decoder = (json.object(f"vision_{part}_config") for part in ("und_enc", "gen_enc", "gen_dec"))
    und.require("cls", "CLIPVisionTower")
    encoder.require("cls", "ShallowUViTEncoder")
    decoder.require("cls", "ShallowUViTDecoder")
    llm = llama_from_json(json.required_object("language_config"))
    return JanusFlowConfig(
        und_encoder=siglip_from_json(und.object("params"), shapes, _SIGLIP_PREFIX),
        gen_encoder=_gen_encoder(encoder.object("params"), decoder.object("params"), shapes, llm.width),
        vae=None,
        llm=llm,
    )


def _gen_encoder(encoder: JsonObject, decoder: JsonObject, shapes: Shapes, llm_width: int) -> UViTConfig:
    for params in (encoder, decoder):
        params.require("hidden_size", llm_width)
    width, latent_channels, patch, _ = shape_of(
        shapes,
        f"{_ENCODER}in_conv.weight",
        (_RELEASED.width, _RELEASED.latent_channels, _RELEASED.patch_size, _RELEASED.patch_size),
    )
    *_, kernel_size = shape_of(
        shapes,
        f"{_ENCODER}mid_block.res_blocks.0.depthwise.weight",
        (width, 1, _RELEASED.kernel_size, _RELEASED.kernel_size),
    )
    (hidden,) = shape_of(
        shapes, f"{_ENCODER}mid_block.res_blocks.0.channelwise_linear_1.bias", (_RELEASED.mlp_ratio * width,)
    )
    patch = encoder.get("kernel_size", patch)
    encoder.require("stride", patch)
    encoder.require("padding", 0)
    latent_channels = encoder.get("input_channels", latent_channels)
    decoder.require("out_channels", latent_channels)
    width = _only_width(encoder, width)
    decoder.require("in_channels", width)
    if _only_width(decoder, width) != width:
        raise JanusError(f"{decoder.where}: block_out_channels must be those of the encoder, [{width}].")
    # Each upsampling of the decoder doubles the resolution. Together they must undo the encoder's stride.
    if 2 ** decoder.get("upsamples", patch.bit_length() - 1) != patch:
        raise JanusError(
            f"{decoder.where}: upsamples is {decoder.values.get('upsamples')!r}; it must undo the encoder's stride "
            f"of {patch}."
        )
    encoder_depth, decoder_depth = (
        params.get("layers_in_middle", count(shapes, f"{prefix}mid_block.res_blocks.{{}}."))
        for params, prefix in ((encoder, _ENCODER), (decoder, _DECODER))
    )
    return UViTConfig(
        latent_size=encoder.get("latent_size", _RELEASED.latent_size),
        latent_channels=latent_channels,
        patch_size=patch,
        width=width,
        encoder_depth=encoder_depth,
        decoder_depth=decoder_depth,
        kernel_size=encoder.get("depthwise_kernel_size", kernel_size),
        mlp_ratio=encoder.get("mlp_ratio", hidden // width),
    )


def _only_width(params: JsonObject, default: int) -> int:
    """Returns the only element of `block_out_channels`."""
    widths = params.get("block_out_channels", (default,))
    if len(widths) != 1 or not isinstance(widths[0], int):
        raise JanusError(f"{params.where}: block_out_channels is {list(widths)!s:.80}; it must hold one width.")
    return widths[0]


def config_to_json(config: JanusFlowConfig, dtype: str, image_token_id: int = 0) -> dict[str, Any]:
    """Returns the content of the released config.json, which has no field for `image_token_id`.

    Raises:
      JanusError: The layout cannot describe the model.
    """
    g, width = config.gen_encoder, config.llm.width
    upsamples = g.patch_size.bit_length() - 1
    if 2**upsamples != g.patch_size:
        raise JanusError(
            f"The released layout cannot describe {config.name}: patch_size is {g.patch_size} and must be a power of 2."
        )
    common = {"block_out_channels": [g.width], "hidden_size": width}
    encoder = common | {
        "input_channels": g.latent_channels,
        "kernel_size": g.patch_size,
        "layers_in_middle": g.encoder_depth,
        "padding": 0,
        "stride": g.patch_size,
    }
    decoder = common | {
        "in_channels": g.width,
        "layers_in_middle": g.decoder_depth,
        "out_channels": g.latent_channels,
        "upsamples": upsamples,
    }
    extra = differing(
        {
            "latent_size": (g.latent_size, _RELEASED.latent_size),
            "depthwise_kernel_size": (g.kernel_size, _RELEASED.kernel_size),
            "mlp_ratio": (g.mlp_ratio, _RELEASED.mlp_ratio),
        }
    )
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": dtype,
        "conversation": config.conversation,
        "vision_und_enc_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision_und_enc",
            "params": siglip_to_json(config.und_encoder),
        },
        "vision_gen_enc_config": {
            "cls": "ShallowUViTEncoder",
            "model_type": "vision_gen_enc",
            "params": encoder | extra,
        },
        "vision_gen_dec_config": {"cls": "ShallowUViTDecoder", "model_type": "vision_gen_dec", "params": decoder},
        "language_config": llama_to_json(config.llm, dtype),
    }


LAYOUT = Layout(
    "released",
    {
        **timm_siglip_table(_SIGLIP_PREFIX),
        "und_adaptor": "vision_und_enc_aligner",
        "beg_of_und/embedding": Tensor("beg_of_und_embed", "n d -> n d"),
        "gen_encoder/time_embed/fc1": f"{_ENCODER}time_embed.linear_1",
        "gen_encoder/time_embed/fc2": f"{_ENCODER}time_embed.linear_2",
        "gen_encoder/conv_in": f"{_ENCODER}in_conv",
        **_convnext_table("gen_encoder", _ENCODER),
        "gen_adaptor": "vision_gen_enc_aligner",
        "gen_decoder_adaptor/norm": "vision_gen_dec_aligner_norm",
        "gen_decoder_adaptor/linear": "vision_gen_dec_aligner",
        "gen_decoder/norm_in": f"{_DECODER}input_norm",
        **_convnext_table("gen_decoder", _DECODER),
        "gen_decoder/norm_out": f"{_DECODER}out_convs.0.norm",
        **pointwise("gen_decoder/head", f"{_DECODER}out_convs.0.unpatch_conv"),
        **diffusers_vae_table(VAE_PREFIX),
        **llama_table("language_model.model.", "language_model.lm_head"),
    },
    config_from_json,
    config_to_json,
    unused=(r"vision_und_enc_model\.vision_tower\.attn_pool\..*", r".*inv_freq"),
    unused_shapes=unused_shapes,
    tied={"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"},
    renamed=DIFFUSERS_VAE.renamed,
)
