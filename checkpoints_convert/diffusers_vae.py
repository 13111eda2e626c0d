"""SDXL's VAE in diffusers' layout (`AutoencoderKL`), names and config.json, both ways."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints_convert.jsons import Section
from checkpoints_convert.layout import Entry, Layout, Named
from checkpoints_convert.tree import Shape
from janus_jax.config import VAEConfig
from janus_jax.errors import JanusError
from janus_jax.files import read_json_if_exists

WEIGHTS_STEM = "diffusion_pytorch_model"
"""What diffusers calls a file of weights."""


def diffusers_vae_table(prefix: str) -> dict[str, Entry]:
    """The VAE as diffusers names it; the matrices of its attention are matrices there, not 1x1 convolutions."""
    attention = f"{prefix}{{side}}.mid_block.attentions.0"
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    matrices: dict[str, Entry] = {
        f"vae/{{side}}/mid/attn/{ours}/weight": Named(f"{attention}.{theirs}.weight", "o i -> o i")
        for ours, theirs in names.items()
    }
    biases: dict[str, Entry] = {f"vae/{{side}}/mid/attn/{ours}": f"{attention}.{name}" for ours, name in names.items()}
    return {
        **matrices,
        **biases,
        "vae/{side}/mid/attn/norm": f"{attention}.group_norm",
        "vae/{side}/mid/res_{j}/{part}": f"{prefix}{{side}}.mid_block.resnets.{{j}}.{{part}}",
        **_diffusers_levels("encoder/down", f"{prefix}encoder.down_blocks.{{i}}"),
        **_diffusers_levels("decoder/up", f"{prefix}decoder.up_blocks.{{i}}"),
        "vae/quant_conv": f"{prefix}quant_conv",
        "vae/post_quant_conv": f"{prefix}post_quant_conv",
        "vae/{side}/norm_out": f"{prefix}{{side}}.conv_norm_out",
        "vae/{side}/{part}": f"{prefix}{{side}}.{{part}}",
    }


def _diffusers_levels(ours: str, theirs: str) -> dict[str, Entry]:
    return {
        f"vae/{ours}_{{i}}/res_{{j}}/shortcut": f"{theirs}.resnets.{{j}}.conv_shortcut",
        f"vae/{ours}_{{i}}/res_{{j}}/{{part}}": f"{theirs}.resnets.{{j}}.{{part}}",
        f"vae/{ours}_{{i}}/{{sampler}}": f"{theirs}.{{sampler}}rs.0.conv",
    }


DIFFUSERS_VAE = Layout(
    "diffusers_vae",
    diffusers_vae_table(""),
    renamed={
        rf"(\.attentions\.\d+)\.{old}\.": rf"\1.{new}."
        for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items()
    },
)


def read_vae_config(path: Path, shapes: Mapping[str, Shape]) -> VAEConfig:
    """The VAE's numbers, from diffusers' config.json.

    Raises:
      JanusError: there is none, or it describes another network.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    section = Section(read_json_if_exists(file), str(file))
    if not section.values:
        raise JanusError(f"{section.where} does not exist; a VAE's scaling_factor stands nowhere else.")
    section.require("_class_name", "AutoencoderKL")
    section.require("act_fn", "silu")
    section.require("in_channels", 3)
    section.require("out_channels", 3)
    for field, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        for found in section.get(field, (kind,)):
            if found != kind:
                raise JanusError(
                    f"{section.where}: {field} holds {found!r:.80}; the networks here have {kind!r} alone."
                )
    for field in ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv"):
        section.require(field, True)
    for field in ("shift_factor", "latents_mean", "latents_std"):
        section.require(field, None)
    channels = section.get("block_out_channels", (64,))
    positive = channels and all(isinstance(width, int) and width > 0 for width in channels)
    if not positive or any(width % channels[0] for width in channels):
        raise JanusError(
            f"{section.where}: block_out_channels is {list(channels)!s:.80}; it must be whole multiples of the first."
        )
    return VAEConfig(
        latent_channels=section.get("latent_channels", 4),
        base_channels=channels[0],
        channel_multipliers=tuple(width // channels[0] for width in channels),
        num_res_blocks=section.get("layers_per_block", 1),
        norm_groups=section.get("norm_num_groups", 32),
        scaling_factor=section.get("scaling_factor", 0.18215),
    )


def write_vae_config(config: VAEConfig, image_size: int) -> dict[str, Any]:
    """diffusers' config.json of that VAE.

    Args:
      image_size: pixels along a side of the images that it is used for.
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
