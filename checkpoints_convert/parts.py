"""The parts that training starts from, each in the layouts it is published in.

- the language model: DeepSeek-LLM as transformers' `LlamaForCausalLM`;
- the understanding encoder: SigLIP-L/16-384 as transformers' `SiglipModel` and as timm's `VisionTransformer`;
- the image tokenizer: LlamaGen's VQ-16;
- the VAE: SDXL's as diffusers' `AutoencoderKL`.

**Which GELU.** SigLIP was trained with the tanh approximation (arXiv 2303.15343; flax's default), and transformers
runs it so. timm holds the same weights under an exact GELU, and so does Janus, whose own releases went on from
there. Whichever layout SigLIP itself comes in, its config therefore says "tanh", what the checkpoint was trained
with, and a released Janus's says "exact".
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from checkpoints_convert.diffusers_vae import DIFFUSERS_VAE, read_vae_config
from checkpoints_convert.jsons import Section
from checkpoints_convert.layout import Entry, Layout, Named
from checkpoints_convert.tree import Shape
from janus_jax.config import LlamaConfig, SiglipConfig, VAEConfig, VQConfig
from janus_jax.errors import JanusError
from janus_jax.files import read_json_if_exists

Shapes = Mapping[str, Shape]


def llama_table(prefix: str, head: str) -> dict[str, Entry]:
    """A LLaMA as transformers names it, `prefix` before the trunk and `head` for the output matrix."""
    layer = f"{prefix}layers.{{layer}}."
    return {
        "llm/embed": f"{prefix}embed_tokens",
        "llm/layers/attn_norm": f"{layer}input_layernorm",
        "llm/layers/attn/out": f"{layer}self_attn.o_proj",
        "llm/layers/attn/{part}": f"{layer}self_attn.{{part}}_proj",
        "llm/layers/mlp_norm": f"{layer}post_attention_layernorm",
        "llm/layers/mlp/{part}": f"{layer}mlp.{{part}}_proj",
        "llm/norm": f"{prefix}norm",
        "llm/head": head,
    }


def timm_siglip_table(prefix: str) -> dict[str, Entry]:
    """A ViT as timm names it: q, k and v in one matrix."""
    block = f"{prefix}blocks.{{layer}}."
    return {
        "und_encoder/patch_embed": f"{prefix}patch_embed.proj",
        "und_encoder/pos_embed": Named(f"{prefix}pos_embed", "n w -> 1 n w"),
        "und_encoder/blocks/attn/qkv": f"{block}attn.qkv",
        "und_encoder/blocks/attn/out": f"{block}attn.proj",
        "und_encoder/blocks/mlp/{part}": f"{block}mlp.{{part}}",
        "und_encoder/blocks/{norm}": f"{block}{{norm}}",
        "und_encoder/norm": f"{prefix}norm",
    }


def transformers_siglip_table(prefix: str, out: str) -> dict[str, Entry]:
    """A SigLIP tower as transformers names it: q, k and v apart; `out` is the output projection's name."""
    block = f"{prefix}encoder.layers.{{layer}}."
    return {
        "und_encoder/patch_embed": f"{prefix}embeddings.patch_embedding",
        "und_encoder/pos_embed": Named(f"{prefix}embeddings.position_embedding.weight", "n w -> n w"),
        "und_encoder/blocks/attn/qkv": tuple(f"{block}self_attn.{one}_proj" for one in "qkv"),
        "und_encoder/blocks/attn/out": f"{block}self_attn.{out}",
        "und_encoder/blocks/mlp/{part}": f"{block}mlp.{{part}}",
        "und_encoder/blocks/norm1": f"{block}layer_norm1",
        "und_encoder/blocks/norm2": f"{block}layer_norm2",
        "und_encoder/norm": f"{prefix}post_layernorm",
    }


def vq_table(prefix: str) -> dict[str, Entry]:
    """The image tokenizer as LlamaGen names it; the released Janus files keep its names."""
    return {
        **_vq_levels("encoder/down", f"{prefix}encoder.conv_blocks.{{i}}", "res"),
        **_vq_levels("decoder/up", f"{prefix}decoder.conv_blocks.{{i}}", "res"),
        **_vq_middle(f"{prefix}{{side}}.mid", ("0", "1", "2")),
        **_vq_ends(prefix),
    }


def transformers_vq_table(prefix: str) -> dict[str, Entry]:
    """The image tokenizer as transformers' Janus names it."""
    return {
        **_vq_levels("encoder/down", f"{prefix}encoder.down.{{i}}", "block"),
        **_vq_levels("decoder/up", f"{prefix}decoder.up.{{i}}", "block"),
        **_vq_middle(f"{prefix}{{side}}.mid", ("block_1", "attn_1", "block_2")),
        **_vq_ends(prefix),
    }


def _vq_levels(ours: str, theirs: str, block: str) -> dict[str, Entry]:
    at = f"gen_encoder/{ours}_{{i}}"
    return {
        f"{at}/res_{{j}}/shortcut": f"{theirs}.{block}.{{j}}.nin_shortcut",
        f"{at}/res_{{j}}/{{part}}": f"{theirs}.{block}.{{j}}.{{part}}",
        f"{at}/attn_{{j}}/out": f"{theirs}.attn.{{j}}.proj_out",
        f"{at}/attn_{{j}}/{{part}}": f"{theirs}.attn.{{j}}.{{part}}",
        f"{at}/{{sampler}}": f"{theirs}.{{sampler}}.conv",
    }


def _vq_middle(theirs: str, names: tuple[str, str, str]) -> dict[str, Entry]:
    at, (first, attention, second) = "gen_encoder/{side}/mid", names
    return {
        f"{at}/res_0/{{part}}": f"{theirs}.{first}.{{part}}",
        f"{at}/attn/out": f"{theirs}.{attention}.proj_out",
        f"{at}/attn/{{part}}": f"{theirs}.{attention}.{{part}}",
        f"{at}/res_1/{{part}}": f"{theirs}.{second}.{{part}}",
    }


def _vq_ends(prefix: str) -> dict[str, Entry]:
    return {
        "gen_encoder/codebook": f"{prefix}quantize.embedding",
        "gen_encoder/quant_conv": f"{prefix}quant_conv",
        "gen_encoder/post_quant_conv": f"{prefix}post_quant_conv",
        "gen_encoder/{side}/{part}": f"{prefix}{{side}}.{{part}}",
    }


_ROTARY = r".*rotary_emb\.inv_freq"
_POSITION_IDS = r".*position_ids"

LLAMA = Layout(
    "llama",
    llama_table("model.", "lm_head"),
    dropped=(_ROTARY,),
    tied={"lm_head.weight": "model.embed_tokens.weight"},
)
# The text tower and the pooling heads take no part in Janus.
SIGLIP = Layout(
    "siglip",
    transformers_siglip_table("vision_model.", "out_proj"),
    dropped=(_POSITION_IDS, r"text_model\..*", r"logit_(scale|bias)", r"vision_model\.head\..*"),
)
SIGLIP_BARE = Layout("siglip", transformers_siglip_table("", "out_proj"), dropped=(_POSITION_IDS, r"head\..*"))
TIMM_SIGLIP = Layout("timm_siglip", timm_siglip_table(""), dropped=(r"attn_pool\..*", r"fc_norm\..*", r"head\..*"))
OPEN_CLIP_SIGLIP = Layout(
    "timm_siglip",
    timm_siglip_table("visual.trunk."),
    dropped=(r"text\..*", r"logit_(scale|bias)", r"visual\.trunk\.attn_pool\..*", r"visual\.head\..*"),
)
VQ = Layout("vq", vq_table(""), dropped=(r"quantize\.codebook_used",))


def count(shapes: Shapes, pattern: str) -> int:
    """How many numbers there are at `{}` in names like the pattern."""
    name = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)") + ".*")
    return len({match[1] for match in map(name.match, shapes) if match})


def shape_of(shapes: Shapes, name: str, default: Shape) -> Shape:
    """The shape of a tensor that sizes are read off; the default, which has as many axes, where there is none.

    Raises:
      JanusError: it has another number of axes, or an empty one.
    """
    found = shapes.get(name, default)
    if len(found) != len(default) or 0 in found:
        raise JanusError(
            f"sizes are read off the tensor {name}, which is {list(found)} and should have {len(default)} axes, "
            f"none of them empty; fetch the weights again."
        )
    return found


def infer_siglip(shapes: Shapes, prefix: str, base: SiglipConfig) -> SiglipConfig:
    """The sizes of a tower in timm's layout that its shapes give away; the rest from `base`."""
    (width,) = shape_of(shapes, f"{prefix}patch_embed.proj.bias", (base.width,))
    *_, patch = shape_of(shapes, f"{prefix}patch_embed.proj.weight", (width, 3, base.patch_size, base.patch_size))
    (mlp_dim,) = shape_of(shapes, f"{prefix}blocks.0.mlp.fc1.bias", (base.mlp_dim,))
    depth = count(shapes, f"{prefix}blocks.{{}}.") or base.depth
    _, places, _ = shape_of(shapes, f"{prefix}pos_embed", (1, base.num_patches, width))
    return replace(
        base, width=width, patch_size=patch, mlp_dim=mlp_dim, depth=depth, image_size=patch * math.isqrt(places)
    )


def infer_vq(shapes: Shapes, prefix: str, base: VQConfig) -> VQConfig:
    """The sizes of an image tokenizer in LlamaGen's layout that its shapes give away; the rest from `base`."""
    (channels,) = shape_of(shapes, f"{prefix}encoder.conv_in.bias", (base.base_channels,))
    levels = count(shapes, f"{prefix}encoder.conv_blocks.{{}}.")
    first = [f"{prefix}encoder.conv_blocks.{i}.res.0.conv1.bias" for i in range(levels)]
    multipliers = tuple(shape_of(shapes, name, (channels,))[0] // channels for name in first if name in shapes)
    codebook = (base.codebook_size, base.code_dim)
    codebook_size, code_dim = shape_of(shapes, f"{prefix}quantize.embedding.weight", codebook)
    (z_channels,) = shape_of(shapes, f"{prefix}encoder.conv_out.bias", (base.z_channels,))
    return replace(
        base,
        codebook_size=codebook_size,
        code_dim=code_dim,
        base_channels=channels,
        channel_multipliers=multipliers or base.channel_multipliers,
        num_res_blocks=count(shapes, f"{prefix}encoder.conv_blocks.0.res.{{}}.") or base.num_res_blocks,
        z_channels=z_channels,
    )


def llama_config(section: Section) -> LlamaConfig:
    """A transformers LlamaConfig, which leaves out what is at its default."""
    section.require("model_type", "llama")
    section.require("hidden_act", "silu")
    section.require("attention_bias", False)
    section.require("mlp_bias", False)
    width, heads = section.get("hidden_size", 4096), section.get("num_attention_heads", 32)
    # transformers 5 moved the base into an object of its own; before, the object held a scaling or was null.
    rope = section.section("rope_parameters" if "rope_parameters" in section else "rope_scaling")
    if rope.values.get("rope_type", rope.values.get("type", "default")) != "default":
        raise JanusError(f"{rope.where} is {dict(rope.values)!s:.80}; scaled rotary positions are not supported.")
    if width <= 0 or heads <= 0:
        raise JanusError(f"{section.where}: hidden_size {width} and num_attention_heads {heads} must be positive.")
    return LlamaConfig(
        vocab_size=section.get("vocab_size", 32000),
        width=width,
        depth=section.get("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=section.get("num_key_value_heads", heads),
        head_dim=section.get("head_dim", width // heads),
        mlp_dim=section.get("intermediate_size", 11008),
        rms_norm_eps=section.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta", section.get("rope_theta", 10000.0)),
        max_positions=section.get("max_position_embeddings", 2048),
    )


def _config(path: Path) -> Section:
    file = (path if path.is_dir() else path.parent) / "config.json"
    return Section(read_json_if_exists(file), str(file))


def read_llama_config(path: Path, shapes: Shapes) -> LlamaConfig:
    """The language model's numbers, from its config.json.

    Raises:
      JanusError: there is none, or it describes another network.
    """
    section = _config(path)
    if not section.values:
        raise JanusError(f"{section.where} does not exist; a LLaMA's head count stands nowhere else.")
    return llama_config(section)


def read_siglip_config(path: Path, shapes: Shapes) -> SiglipConfig:
    """The encoder's numbers, from transformers' config.json.

    Raises:
      JanusError: there is none, or it describes another network.
    """
    section = _config(path)
    if not section.values:
        raise JanusError(f"{section.where} does not exist; SigLIP's head count stands nowhere else.")
    section = section.section("vision_config") if "vision_config" in section else section
    section.require("hidden_act", "gelu_pytorch_tanh", "gelu")
    return SiglipConfig(
        image_size=section.get("image_size", 224),
        patch_size=section.get("patch_size", 16),
        width=section.get("hidden_size", 768),
        depth=section.get("num_hidden_layers", 12),
        num_heads=section.get("num_attention_heads", 12),
        mlp_dim=section.get("intermediate_size", 3072),
        layer_norm_eps=section.get("layer_norm_eps", 1e-6),
        gelu="exact" if section.get("hidden_act", "gelu_pytorch_tanh") == "gelu" else "tanh",
    )


def _timm_config(prefix: str) -> Callable[[Path, Shapes], SiglipConfig]:
    def read(path: Path, shapes: Shapes) -> SiglipConfig:
        base = infer_siglip(shapes, prefix, SiglipConfig(gelu="tanh"))
        # Every SigLIP tower has heads of 64 numbers, and only their product with the count shows in the shapes.
        return replace(base, num_heads=max(1, base.width // 64))

    return read


def read_vq_config(path: Path, shapes: Shapes) -> VQConfig:
    """The tokenizer's numbers; LlamaGen publishes no config, so from the shapes."""
    return infer_vq(shapes, "", VQConfig())


PARTS: tuple[tuple[str, Layout, Callable[[Path, Shapes], LlamaConfig | SiglipConfig | VQConfig | VAEConfig]], ...] = (
    ("model.layers.0.self_attn.q_proj.weight", LLAMA, read_llama_config),
    ("vision_model.encoder.layers.0.self_attn.q_proj.weight", SIGLIP, read_siglip_config),
    ("encoder.layers.0.self_attn.q_proj.weight", SIGLIP_BARE, read_siglip_config),
    ("blocks.0.attn.qkv.weight", TIMM_SIGLIP, _timm_config("")),
    ("visual.trunk.blocks.0.attn.qkv.weight", OPEN_CLIP_SIGLIP, _timm_config("visual.trunk.")),
    ("quantize.embedding.weight", VQ, read_vq_config),
    ("encoder.mid_block.attentions.0.group_norm.weight", DIFFUSERS_VAE, read_vae_config),
)
"""For each layout of a part: a tensor that only it has, the layout, and where its numbers come from."""
