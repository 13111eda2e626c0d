"""Layout of SDXL's VAE in diffusers (`AutoencoderKL`)."""

from typing import Any

from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.layout import Layout, Shapes, Table, pointwise
from janus_jax.config import VAEConfig
from janus_jax.errors import JanusError

WEIGHTS_STEM = "diffusion_pytorch_model"
"""File name of the weights in diffusers, without suffix."""


def diffusers_vae_table(prefix: str) -> Table:
    """Returns the tensor names of the VAE in diffusers, whose attention has matrices instead of 1x1 convolutions."""
    attention = f"{prefix}{{side}}.mid_block.attentions.0"
    return {
        "vae/{side}/mid/attn/norm": f"{attention}.group_norm",
        "vae/{side}/mid/attn/out": f"{attention}.to_out.0",
        "vae/{side}/mid/attn/{part}": f"{attention}.to_{{part}}",
        "vae/{side}/mid/res_{j}/{part}": f"{prefix}{{side}}.mid_block.resnets.{{j}}.{{part}}",
        **_levels("encoder/down", f"{prefix}encoder.down_blocks.{{i}}"),
        **_levels("decoder/up", f"{prefix}decoder.up_blocks.{{i}}"),
        **pointwise("vae/quant_conv", f"{prefix}quant_conv"),
        **pointwise("vae/post_quant_conv", f"{prefix}post_quant_conv"),
        "vae/{side}/norm_out": f"{prefix}{{side}}.conv_norm_out",
        "vae/{side}/{part}": f"{prefix}{{side}}.{{part}}",
    }


def _levels(module: str, name: str) -> Table:
    return {
        **pointwise(f"vae/{module}_{{i}}/res_{{j}}/shortcut", f"{name}.resnets.{{j}}.conv_shortcut"),
        f"vae/{module}_{{i}}/res_{{j}}/{{part}}": f"{name}.resnets.{{j}}.{{part}}",
        f"vae/{module}_{{i}}/{{sampler}}": f"{name}.{{sampler}}rs.0.conv",
    }


def _read_config(json: JsonObject, shapes: Shapes) -> VAEConfig:
    json.require_present("scaling_factor")
    json.require("_class_name", "AutoencoderKL")
    json.require("act_fn", "silu")
    json.require("in_channels", 3)
    json.require("out_channels", 3)
    for field, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        for found in json.get(field, (kind,)):
            if found != kind:
                raise JanusError(f"{json.where}: {field} holds {found!r:.80}; janus_jax supports only {kind!r}.")
    for field in ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv"):
        json.require(field, True)
    for field in ("shift_factor", "latents_mean", "latents_std"):
        json.require(field, None)
    channels = json.get("block_out_channels", (64,))
    positive = channels and all(isinstance(width, int) and width > 0 for width in channels)
    if not positive or any(width % channels[0] for width in channels):
        raise JanusError(
            f"{json.where}: block_out_channels is {list(channels)!s:.80}; all must be whole multiples of the first."
        )
    return VAEConfig(
        latent_channels=json.get("latent_channels", 4),
        base_channels=channels[0],
        channel_multipliers=tuple(width // channels[0] for width in channels),
        num_res_blocks=json.get("layers_per_block", 1),
        norm_groups=json.get("norm_num_groups", 32),
        scaling_factor=json.get("scaling_factor", 0.18215),
    )


DIFFUSERS_VAE = Layout(
    "diffusers_vae",
    diffusers_vae_table(""),
    _read_config,
    marker="encoder.mid_block.attentions.0.group_norm.weight",
    renamed={
        rf"(\.attentions\.\d+)\.{old}\.": rf"\1.{new}."
        for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items()
    },
)


def vae_to_json(config: VAEConfig, image_size: int) -> dict[str, Any]:
    """Returns the content of diffusers' config.json.

    Args:
      image_size: Height and width of the images that the VAE is used for, in pixels.
    """
    levels = len(config.channel_multipliers)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.level_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.num_res_blocks,
        "norm_num_groups": config.norm_groups,
        "out_channels": 3,
        "sample_size": image_size,
        "scaling_factor": config.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
