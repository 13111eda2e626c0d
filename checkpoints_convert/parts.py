"""Layouts of the parts that training starts from.

- language model: DeepSeek-LLM as transformers' `LlamaForCausalLM`
- understanding encoder: SigLIP-L/16-384 as transformers' `SiglipModel` and as timm's `VisionTransformer`
- image tokenizer: LlamaGen's VQ-16
- VAE: SDXL's as diffusers' `AutoencoderKL` (`diffusers_vae`)

SigLIP was trained with the tanh approximation of the GELU (arXiv 2303.15343; flax's default), and transformers uses the
approximation too. timm runs the same weights with the exact GELU. So does Janus, whose training started from timm's
model. Therefore the config of a SigLIP checkpoint has the GELU "tanh" in all layouts, and the config of a released
Janus model has "exact".
"""

import math
import re
from dataclasses import replace

from checkpoints_convert.diffusers_vae import DIFFUSERS_VAE
from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.layout import Layout, Shapes, Table, Tensor, pointwise
from checkpoints_convert.parameters import Shape
from janus_jax.config import LlamaConfig, SiglipConfig, VQConfig
from janus_jax.errors import JanusError


def llama_table(prefix: str, head: str) -> Table:
    """Returns the tensor names of a LLaMA model in transformers.

    Args:
      prefix: Prefix of all tensor names except the head's.
      head: Name of the output head.
    """
    layer = f"{prefix}layers.{{layer}}."
    return {
        "llm/embed": f"{prefix}embed_tokens",
        "llm/layers/attn_norm": f"{layer}input_layernorm",
        "llm/layers/attn/out/weight": Tensor(f"{layer}self_attn.o_proj.weight", "d h k -> d (h k)"),
        "llm/layers/attn/{part}/weight": Tensor(f"{layer}self_attn.{{part}}_proj.weight", "h k d -> (h k) d"),
        "llm/layers/mlp_norm": f"{layer}post_attention_layernorm",
        "llm/layers/mlp/{part}": f"{layer}mlp.{{part}}_proj",
        "llm/norm": f"{prefix}norm",
        "llm/head": head,
    }


def timm_siglip_table(prefix: str) -> Table:
    """Returns the tensor names of a SigLIP encoder in timm, which stores queries, keys and values in one matrix."""
    block = f"{prefix}blocks.{{layer}}."
    return {
        "und_encoder/patch_embed": f"{prefix}patch_embed.proj",
        "und_encoder/pos_embed": Tensor(f"{prefix}pos_embed", "n w -> 1 n w"),
        "und_encoder/blocks/attn/qkv/weight": Tensor(f"{block}attn.qkv.weight", "q h k w -> (q h k) w"),
        "und_encoder/blocks/attn/qkv/bias": Tensor(f"{block}attn.qkv.bias", "q h k -> (q h k)"),
        "und_encoder/blocks/attn/out/weight": Tensor(f"{block}attn.proj.weight", "w h k -> w (h k)"),
        "und_encoder/blocks/attn/out": f"{block}attn.proj",
        "und_encoder/blocks/mlp/{part}": f"{block}mlp.{{part}}",
        "und_encoder/blocks/{norm}": f"{block}{{norm}}",
        "und_encoder/norm": f"{prefix}norm",
    }


def transformers_siglip_table(prefix: str, out: str) -> Table:
    """Returns the tensor names of a SigLIP encoder in transformers: queries, keys and values are in three matrices.

    Args:
      out: Name of the attention's output projection.
    """
    block = f"{prefix}encoder.layers.{{layer}}."
    weights, biases = (tuple(f"{block}self_attn.{part}_proj.{kind}" for part in "qkv") for kind in ("weight", "bias"))
    return {
        "und_encoder/patch_embed": f"{prefix}embeddings.patch_embedding",
        "und_encoder/pos_embed": Tensor(f"{prefix}embeddings.position_embedding.weight", "n w -> n w"),
        "und_encoder/blocks/attn/qkv/weight": Tensor(weights, "h k w -> (h k) w"),
        "und_encoder/blocks/attn/qkv/bias": Tensor(biases, "h k -> (h k)"),
        "und_encoder/blocks/attn/out/weight": Tensor(f"{block}self_attn.{out}.weight", "w h k -> w (h k)"),
        "und_encoder/blocks/attn/out": f"{block}self_attn.{out}",
        "und_encoder/blocks/mlp/{part}": f"{block}mlp.{{part}}",
        "und_encoder/blocks/norm1": f"{block}layer_norm1",
        "und_encoder/blocks/norm2": f"{block}layer_norm2",
        "und_encoder/norm": f"{prefix}post_layernorm",
    }


def vq_table(prefix: str) -> Table:
    """Returns the tensor names of the image tokenizer in LlamaGen and in released Janus files."""
    return {
        **_vq_levels("encoder/down", f"{prefix}encoder.conv_blocks.{{i}}", "res"),
        **_vq_levels("decoder/up", f"{prefix}decoder.conv_blocks.{{i}}", "res"),
        **_vq_middle(f"{prefix}{{side}}.mid", ("0", "1", "2")),
        **_vq_ends(prefix),
    }


def transformers_vq_table(prefix: str) -> Table:
    """Returns the tensor names of the image tokenizer in transformers' Janus."""
    return {
        **_vq_levels("encoder/down", f"{prefix}encoder.down.{{i}}", "block"),
        **_vq_levels("decoder/up", f"{prefix}decoder.up.{{i}}", "block"),
        **_vq_middle(f"{prefix}{{side}}.mid", ("block_1", "attn_1", "block_2")),
        **_vq_ends(prefix),
    }


def _vq_levels(module: str, name: str, block: str) -> Table:
    at = f"gen_encoder/{module}_{{i}}"
    return {
        **pointwise(f"{at}/res_{{j}}/shortcut", f"{name}.{block}.{{j}}.nin_shortcut"),
        f"{at}/res_{{j}}/{{part}}": f"{name}.{block}.{{j}}.{{part}}",
        **pointwise(f"{at}/attn_{{j}}/out", f"{name}.attn.{{j}}.proj_out"),
        **pointwise(f"{at}/attn_{{j}}/{{part}}", f"{name}.attn.{{j}}.{{part}}"),
        f"{at}/{{sampler}}": f"{name}.{{sampler}}.conv",
    }


def _vq_middle(name: str, blocks: tuple[str, str, str]) -> Table:
    at, (first, attention, second) = "gen_encoder/{side}/mid", blocks
    return {
        f"{at}/res_0/{{part}}": f"{name}.{first}.{{part}}",
        **pointwise(f"{at}/attn/out", f"{name}.{attention}.proj_out"),
        **pointwise(f"{at}/attn/{{part}}", f"{name}.{attention}.{{part}}"),
        f"{at}/res_1/{{part}}": f"{name}.{second}.{{part}}",
    }


def _vq_ends(prefix: str) -> Table:
    return {
        "gen_encoder/codebook": f"{prefix}quantize.embedding",
        **pointwise("gen_encoder/quant_conv", f"{prefix}quant_conv"),
        **pointwise("gen_encoder/post_quant_conv", f"{prefix}post_quant_conv"),
        "gen_encoder/{side}/{part}": f"{prefix}{{side}}.{{part}}",
    }


def count(shapes: Shapes, pattern: str) -> int:
    """Returns how many different integers `{}` matches in the tensor names that start with the pattern."""
    name = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)") + ".*")
    return len({match[1] for match in map(name.match, shapes) if match})


def shape_of(shapes: Shapes, name: str, default: Shape) -> Shape:
    """Returns the shape of a tensor that sizes are inferred from; the default if the tensor is absent.

    Raises:
      JanusError: The shape has another number of axes than the default, or an empty axis.
    """
    found = shapes.get(name, default)
    if len(found) != len(default) or 0 in found:
        raise JanusError(
            f"Sizes of the model are inferred from the tensor {name}, which is {list(found)} and should have "
            f"{len(default)} axes, none of them empty; fetch the weights again."
        )
    return found


def infer_siglip(shapes: Shapes, prefix: str, base: SiglipConfig) -> SiglipConfig:
    """Returns `base` with the sizes of a SigLIP encoder, inferred from its tensor shapes in timm's layout."""
    (width,) = shape_of(shapes, f"{prefix}patch_embed.proj.bias", (base.width,))
    *_, patch = shape_of(shapes, f"{prefix}patch_embed.proj.weight", (width, 3, base.patch_size, base.patch_size))
    (mlp_dim,) = shape_of(shapes, f"{prefix}blocks.0.mlp.fc1.bias", (base.mlp_dim,))
    depth = count(shapes, f"{prefix}blocks.{{}}.") or base.depth
    _, num_patches, _ = shape_of(shapes, f"{prefix}pos_embed", (1, base.num_patches, width))
    return replace(
        base, width=width, patch_size=patch, mlp_dim=mlp_dim, depth=depth, image_size=patch * math.isqrt(num_patches)
    )


def infer_vq(shapes: Shapes, prefix: str, base: VQConfig) -> VQConfig:
    """Returns `base` with the sizes of an image tokenizer, inferred from its tensor shapes in LlamaGen's layout."""
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


def llama_from_json(json: JsonObject) -> LlamaConfig:
    """Returns the config in a transformers LlamaConfig, in which fields with their default value are absent.

    Raises:
      JanusError: The object describes another network. The message names the field.
    """
    json.require("model_type", "llama")
    json.require("hidden_act", "silu")
    json.require("attention_bias", False)
    json.require("mlp_bias", False)
    width, heads = json.get("hidden_size", 4096), json.get("num_attention_heads", 32)
    # transformers 5 stores the base in rope_parameters; earlier versions have rope_scaling, which is null or a scaling.
    rope = json.object("rope_parameters" if "rope_parameters" in json else "rope_scaling")
    if rope.values.get("rope_type", rope.values.get("type", "default")) != "default":
        raise JanusError(f"{rope.where} is {dict(rope.values)!s:.80}; scaled rotary positions are not supported.")
    if width <= 0 or heads <= 0:
        raise JanusError(f"{json.where}: hidden_size {width} and num_attention_heads {heads} must be positive.")
    return LlamaConfig(
        vocab_size=json.get("vocab_size", 32000),
        width=width,
        depth=json.get("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=json.get("num_key_value_heads", heads),
        head_dim=json.get("head_dim", width // heads),
        mlp_dim=json.get("intermediate_size", 11008),
        rms_norm_eps=json.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta", json.get("rope_theta", 10000.0)),
        max_positions=json.get("max_position_embeddings", 2048),
    )


def _read_llama(json: JsonObject, shapes: Shapes) -> LlamaConfig:
    json.require_present("num_attention_heads")
    return llama_from_json(json)


def _read_siglip(json: JsonObject, shapes: Shapes) -> SiglipConfig:
    json.require_present("num_attention_heads")
    json = json.object("vision_config") if "vision_config" in json else json
    json.require("hidden_act", "gelu_pytorch_tanh", "gelu")
    return SiglipConfig(
        image_size=json.get("image_size", 224),
        patch_size=json.get("patch_size", 16),
        width=json.get("hidden_size", 768),
        depth=json.get("num_hidden_layers", 12),
        num_heads=json.get("num_attention_heads", 12),
        mlp_dim=json.get("intermediate_size", 3072),
        layer_norm_eps=json.get("layer_norm_eps", 1e-6),
        gelu="exact" if json.get("hidden_act", "gelu_pytorch_tanh") == "gelu" else "tanh",
    )


def _infer_timm(shapes: Shapes, prefix: str) -> SiglipConfig:
    inferred = infer_siglip(shapes, prefix, SiglipConfig(gelu="tanh"))
    # The number of heads cannot be inferred from shapes; all published SigLIP encoders have heads of dimension 64.
    return replace(inferred, num_heads=max(1, inferred.width // 64))


_POSITION_IDS = r".*position_ids"
_OPEN_CLIP_PREFIX = "visual.trunk."

LLAMA = Layout(
    "llama",
    llama_table("model.", "lm_head"),
    _read_llama,
    marker="model.layers.0.self_attn.q_proj.weight",
    unused=(r".*rotary_emb\.inv_freq",),
    tied={"lm_head.weight": "model.embed_tokens.weight"},
)
# Janus uses neither the text encoder nor the pooling head of SigLIP.
SIGLIP = Layout(
    "siglip",
    transformers_siglip_table("vision_model.", "out_proj"),
    _read_siglip,
    marker="vision_model.encoder.layers.0.self_attn.q_proj.weight",
    unused=(_POSITION_IDS, r"text_model\..*", r"logit_(scale|bias)", r"vision_model\.head\..*"),
)
SIGLIP_VISION = Layout(
    "siglip",
    transformers_siglip_table("", "out_proj"),
    _read_siglip,
    marker="encoder.layers.0.self_attn.q_proj.weight",
    unused=(_POSITION_IDS, r"head\..*"),
)
TIMM_SIGLIP = Layout(
    "timm_siglip",
    timm_siglip_table(""),
    lambda json, shapes: _infer_timm(shapes, ""),
    marker="blocks.0.attn.qkv.weight",
    unused=(r"attn_pool\..*", r"fc_norm\..*", r"head\..*"),
)
OPEN_CLIP_SIGLIP = Layout(
    "timm_siglip",
    timm_siglip_table(_OPEN_CLIP_PREFIX),
    lambda json, shapes: _infer_timm(shapes, _OPEN_CLIP_PREFIX),
    marker="visual.trunk.blocks.0.attn.qkv.weight",
    unused=(r"text\..*", r"logit_(scale|bias)", r"visual\.trunk\.attn_pool\..*", r"visual\.head\..*"),
)
# LlamaGen publishes no config.
VQ = Layout(
    "vq",
    vq_table(""),
    lambda json, shapes: infer_vq(shapes, "", VQConfig()),
    marker="quantize.embedding.weight",
    unused=(r"quantize\.codebook_used",),
)

PART_LAYOUTS = (LLAMA, SIGLIP, SIGLIP_VISION, TIMM_SIGLIP, OPEN_CLIP_SIGLIP, VQ, DIFFUSERS_VAE)
