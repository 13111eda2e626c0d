"""The released layout of JanusFlow: names and config.json, both ways, and its VAE in a folder beside.

config.json says `multi_modality` as Janus' does, and nests `vision_und_enc_config`, `vision_gen_enc_config`,
`vision_gen_dec_config` and `language_config`. Its VAE is none of the released file: it is SDXL's, in diffusers' layout,
which the folder `vae/` within holds or another one that is named. Its tensors have the prefix `vae.` here.

For models of other sizes the generation encoder's `params` carry further fields, written only where they differ:
`latent_size, depthwise_kernel_size, mlp_ratio`.
"""

from typing import Any

from checkpoints_convert.diffusers_vae import DIFFUSERS_VAE, diffusers_vae_table
from checkpoints_convert.jsons import Section
from checkpoints_convert.layout import Layout, Named
from checkpoints_convert.parts import (
    Shapes,
    count,
    llama_config,
    llama_table,
    shape_of,
    timm_siglip_table,
)
from checkpoints_convert.released import (
    attention_pool,
    differing,
    read_und_encoder,
    write_llama_config,
    write_und_encoder,
)
from checkpoints_convert.tree import Shape, leaves
from janus_jax.config import JanusFlowConfig, UViTConfig
from janus_jax.errors import JanusError

VAE_PREFIX = "vae."
VAE_FOLDER = "vae"

_TOWER = "vision_und_enc_model.vision_tower."
_ENCODER = "vision_gen_enc_model."
_DECODER = "vision_gen_dec_model."
_RELEASED = UViTConfig()


def _convnext_table(ours: str, theirs: str) -> dict[str, str | tuple[str, ...] | Named]:
    at, block = f"{ours}/blocks_{{i}}", f"{theirs}mid_block.res_blocks.{{i}}."
    return {
        f"{at}/depthwise": f"{block}depthwise",
        f"{at}/norm": f"{block}norm",
        f"{at}/fc1": f"{block}channelwise_linear_1",
        f"{at}/response_norm/scale": Named(f"{block}channelwise_norm.weight", "c -> 1 1 1 c"),
        f"{at}/response_norm/bias": Named(f"{block}channelwise_norm.bias", "c -> 1 1 1 c"),
        f"{at}/fc2": f"{block}channelwise_linear_2",
        f"{at}/film": f"{block}cond_embeds_mapper",
    }


LAYOUT = Layout(
    "released",
    {
        **timm_siglip_table(_TOWER),
        "und_adaptor": "vision_und_enc_aligner",
        "beg_of_und/embedding": Named("beg_of_und_embed", "n d -> n d"),
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
        "gen_decoder/head": f"{_DECODER}out_convs.0.unpatch_conv",
        **diffusers_vae_table(VAE_PREFIX),
        **llama_table("language_model.model.", "language_model.lm_head"),
    },
    dropped=(r"vision_und_enc_model\.vision_tower\.attn_pool\..*", r".*inv_freq"),
    renamed=DIFFUSERS_VAE.renamed,
)


def unused(config: JanusFlowConfig) -> dict[str, Shape]:
    """Name and shape of the tensors that released files hold and JanusFlow does not use."""
    return attention_pool(config.und_encoder, _TOWER)


def manifest(config: JanusFlowConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of a released model, the unused ones and its VAE's included."""
    return LAYOUT.manifest(leaves(config)) | unused(config)


def read_config(file: Section, shapes: Shapes) -> JanusFlowConfig:
    """A released config.json, with what it does not state read off the tensors' shapes. It knows of no VAE.

    The model's name is left at its default.

    Raises:
      JanusError: it describes another network; the message names the field.
    """
    und, encoder, decoder = (file.section(f"vision_{part}_config") for part in ("und_enc", "gen_enc", "gen_dec"))
    und.require("cls", "CLIPVisionTower")
    encoder.require("cls", "ShallowUViTEncoder")
    decoder.require("cls", "ShallowUViTDecoder")
    llm = llama_config(file.section("language_config"))
    return JanusFlowConfig(
        und_encoder=read_und_encoder(und.section("params"), shapes, _TOWER),
        gen_encoder=_gen_encoder(encoder.section("params"), decoder.section("params"), shapes, llm.width),
        vae=None,
        llm=llm,
    )


def _gen_encoder(encoder: Section, decoder: Section, shapes: Shapes, llm_width: int) -> UViTConfig:
    for section in (encoder, decoder):
        section.require("hidden_size", llm_width)
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
    width = _only(encoder, width)
    decoder.require("in_channels", width)
    if _only(decoder, width) != width:
        raise JanusError(f"{decoder.where}: block_out_channels must be those of the encoder, [{width}].")
    # Each upsampling of the decoder shuffles what the encoder's stride has gathered.
    if 2 ** decoder.get("upsamples", patch.bit_length() - 1) != patch:
        raise JanusError(
            f"{decoder.where}: upsamples is {decoder.values.get('upsamples')!r}; it must undo the encoder's stride "
            f"of {patch}."
        )
    depths = (
        section.get("layers_in_middle", count(shapes, f"{prefix}mid_block.res_blocks.{{}}."))
        for section, prefix in ((encoder, _ENCODER), (decoder, _DECODER))
    )
    encoder_depth, decoder_depth = depths
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


def _only(section: Section, default: int) -> int:
    """The width of the one resolution that there is."""
    widths = section.get("block_out_channels", (default,))
    if len(widths) != 1 or not isinstance(widths[0], int):
        raise JanusError(f"{section.where}: block_out_channels is {list(widths)!s:.80}; it must be one width.")
    return widths[0]


def write_config(config: JanusFlowConfig, dtype: str) -> dict[str, Any]:
    """The released config.json of that model.

    Raises:
      JanusError: the layout has no way to say what this model is.
    """
    g, width = config.gen_encoder, config.llm.width
    upsamples = g.patch_size.bit_length() - 1
    if 2**upsamples != g.patch_size:
        raise JanusError(f"The released layout cannot say that {config.name} has patches of {g.patch_size}.")
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
    own = differing(
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
            "params": write_und_encoder(config.und_encoder),
        },
        "vision_gen_enc_config": {
            "cls": "ShallowUViTEncoder",
            "model_type": "vision_gen_enc",
            "params": encoder | own,
        },
        "vision_gen_dec_config": {"cls": "ShallowUViTDecoder", "model_type": "vision_gen_dec", "params": decoder},
        "language_config": write_llama_config(config.llm, dtype),
    }
