"""The parameter tree as the networks have it: every leaf's path, shape, and how PyTorch lays out the same numbers.

All layouts share this list; a layout only adds names to it. Repeated blocks are stacked along a leading axis, and
conversion takes them layer by layer.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from janus_jax.config import (
    AutoencoderConfig,
    JanusFlowConfig,
    LlamaConfig,
    ModelConfig,
    SiglipConfig,
    UViTConfig,
    VAEConfig,
    VQConfig,
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """One array in two layouts, written as in einops: `"h k d -> (h k) d"`, ours left, the file's right.

    Both directions are a reshape and at most one transposition, so they never change a number.
    """

    pattern: str

    def file_shape(self, shape: Shape) -> Shape:
        """Shape in the file of a leaf of this shape."""
        names, groups = _axes(self.pattern)
        sizes = dict(zip(names, shape, strict=True))
        return tuple(math.prod(sizes[name] for name in group) for group in groups)

    def to_leaf(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """The file's array as a leaf of this shape; a view where the file's array is contiguous."""
        names, groups = _axes(self.pattern)
        sizes = dict(zip(names, shape, strict=True))
        order = [name for group in groups for name in group]
        return array.reshape([sizes[name] for name in order]).transpose([order.index(name) for name in names])

    def to_file(self, leaf: np.ndarray) -> np.ndarray:
        """The leaf as the file holds it."""
        names, groups = _axes(self.pattern)
        order = [name for group in groups for name in group]
        return leaf.transpose([names.index(name) for name in order]).reshape(self.file_shape(leaf.shape))

    def without_first_axis(self) -> "View":
        """The view of one slice `leaf[i]`."""
        names, groups = _axes(self.pattern)
        first, *rest = names
        kept = [" ".join(name for name in group if name != first) for group in groups]
        return View(f"{' '.join(rest)} -> {' '.join(f'({names})' for names in kept)}")


@functools.cache
def _axes(pattern: str) -> tuple[list[str], list[list[str]]]:
    ours, file = pattern.split("->")
    groups = re.findall(r"\(([^)]*)\)|(\S+)", file)
    return ours.split(), [(many or one).split() if one != "1" else [] for many, one in groups]


@dataclass(frozen=True)
class Leaf:
    """One array of the tree.

    Attributes:
      path: keys from the root, joined by "/".
      shape: of one layer where the leaf is stacked, else of the whole.
      view: how PyTorch lays out the same numbers.
      layers: length of the leading axis of a stacked leaf; None for one that is not stacked.
    """

    path: str
    shape: Shape
    view: View
    layers: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.path.split("/"))

    @property
    def full_shape(self) -> Shape:
        return self.shape if self.layers is None else (self.layers, *self.shape)

    @property
    def layer_indices(self) -> list[int | None]:
        return [None] if self.layers is None else list(range(self.layers))

    @property
    def size(self) -> int:
        return math.prod(self.full_shape)


def layer_by_layer(all_leaves: Iterable[Leaf]) -> Iterator[tuple[Leaf, int | None]]:
    """Every leaf with every layer it has (None: not stacked), all leaves of one block before the next block."""

    def stack(leaf: Leaf) -> tuple[str, ...]:
        return leaf.keys[:2] if leaf.layers is not None else ()

    for _, group in itertools.groupby(all_leaves, stack):
        block = list(group)
        yield from ((leaf, layer) for layer in block[0].layer_indices for leaf in block)


_AS_IT_IS = {1: "a -> a", 2: "a b -> a b"}
_CONV = "h w i o -> o i h w"
_POINTWISE = "o i -> o i 1 1"


def _leaf(path: str, shape: Shape, pattern: str = "") -> Leaf:
    return Leaf(path, shape, View(pattern or _AS_IT_IS[len(shape)]))


def _linear(path: str, inputs: int, outputs: int, pattern: str = "") -> list[Leaf]:
    return [_leaf(f"{path}/weight", (outputs, inputs), pattern), _leaf(f"{path}/bias", (outputs,))]


def _conv(path: str, kernel: int, inputs: int, outputs: int) -> list[Leaf]:
    return [_leaf(f"{path}/kernel", (kernel, kernel, inputs, outputs), _CONV), _leaf(f"{path}/bias", (outputs,))]


def _norm(path: str, width: int) -> list[Leaf]:
    return [_leaf(f"{path}/scale", (width,)), _leaf(f"{path}/bias", (width,))]


def _stacked(path: str, layers: int, leaves: list[Leaf]) -> list[Leaf]:
    return [replace(leaf, path=f"{path}/{leaf.path}", layers=layers) for leaf in leaves]


def _under(path: str, leaves: list[Leaf]) -> list[Leaf]:
    return [replace(leaf, path=f"{path}/{leaf.path}") for leaf in leaves]


def siglip_leaves(config: SiglipConfig) -> list[Leaf]:
    """The leaves of the understanding encoder, without a prefix."""
    width, heads, head_dim = config.width, config.num_heads, config.head_dim
    block = [
        *_norm("norm1", width),
        *_norm("norm2", width),
        _leaf("attn/qkv/weight", (3, heads, head_dim, width), "q h k w -> (q h k) w"),
        _leaf("attn/qkv/bias", (3, heads, head_dim), "q h k -> (q h k)"),
        _leaf("attn/out/weight", (width, heads, head_dim), "w h k -> w (h k)"),
        _leaf("attn/out/bias", (width,)),
        *_linear("mlp/fc1", width, config.mlp_dim),
        *_linear("mlp/fc2", config.mlp_dim, width),
    ]
    return [
        *_conv("patch_embed", config.patch_size, 3, width),
        _leaf("pos_embed", (config.num_patches, width)),
        *_stacked("blocks", config.depth, block),
        *_norm("norm", width),
    ]


def _res_block(path: str, inputs: int, outputs: int) -> list[Leaf]:
    shortcut = _linear(f"{path}/shortcut", inputs, outputs, _POINTWISE) if inputs != outputs else []
    return [
        *_norm(f"{path}/norm1", inputs),
        *_conv(f"{path}/conv1", 3, inputs, outputs),
        *_norm(f"{path}/norm2", outputs),
        *_conv(f"{path}/conv2", 3, outputs, outputs),
        *shortcut,
    ]


def _attention(path: str, channels: int) -> list[Leaf]:
    products = [_linear(f"{path}/{part}", channels, channels, _POINTWISE) for part in ("q", "k", "v", "out")]
    return [*_norm(f"{path}/norm", channels), *itertools.chain.from_iterable(products)]


def _middle(path: str, channels: int) -> list[Leaf]:
    return [
        *_res_block(f"{path}/res_0", channels, channels),
        *_attention(f"{path}/attn", channels),
        *_res_block(f"{path}/res_1", channels, channels),
    ]


def _levels(name: str, sampler: str, start: int, widths: list[int], blocks: int, attends_at: int) -> Iterator[Leaf]:
    channels = start
    for level, width in enumerate(widths):
        for block in range(blocks):
            yield from _res_block(f"{name}_{level}/res_{block}", channels, width)
            channels = width
            if level == attends_at:
                yield from _attention(f"{name}_{level}/attn_{block}", width)
        if level != len(widths) - 1:
            yield from _conv(f"{name}_{level}/{sampler}", 3, width, width)


def _autoencoder_leaves(config: AutoencoderConfig, outputs: int, inputs: int) -> list[Leaf]:
    """Encoder, to a grid of `outputs` numbers a place, and decoder, from one of `inputs`."""
    widths = list(config.level_channels)
    nowhere, lowest = -1, len(widths) - 1
    down_attends, up_attends = (lowest, 0) if config.attends_at_lowest else (nowhere, nowhere)
    encoder = [
        *_conv("conv_in", 3, 3, config.base_channels),
        *_levels("down", "downsample", config.base_channels, widths, config.num_res_blocks, down_attends),
        *_middle("mid", widths[-1]),
        *_norm("norm_out", widths[-1]),
        *_conv("conv_out", 3, widths[-1], outputs),
    ]
    decoder = [
        *_conv("conv_in", 3, inputs, widths[-1]),
        *_middle("mid", widths[-1]),
        *_levels("up", "upsample", widths[-1], widths[::-1], config.num_res_blocks + 1, up_attends),
        *_norm("norm_out", widths[0]),
        *_conv("conv_out", 3, widths[0], 3),
    ]
    return [*_under("encoder", encoder), *_under("decoder", decoder)]


def vq_leaves(config: VQConfig) -> list[Leaf]:
    """The leaves of the image tokenizer, without a prefix."""
    return [
        *_autoencoder_leaves(config, config.z_channels, config.z_channels),
        _leaf("codebook/embedding", (config.codebook_size, config.code_dim)),
        *_linear("quant_conv", config.z_channels, config.code_dim, _POINTWISE),
        *_linear("post_quant_conv", config.code_dim, config.z_channels, _POINTWISE),
    ]


def vae_leaves(config: VAEConfig) -> list[Leaf]:
    """The leaves of the VAE, without a prefix."""
    latent, moments = config.latent_channels, 2 * config.latent_channels
    return [
        *_autoencoder_leaves(config, moments, latent),
        *_linear("quant_conv", moments, moments, _POINTWISE),
        *_linear("post_quant_conv", latent, latent, _POINTWISE),
    ]


def _convnext(path: str, config: UViTConfig, width: int, time_width: int) -> list[Leaf]:
    hidden = config.mlp_ratio * width
    return [
        *_conv(f"{path}/depthwise", config.kernel_size, 1, width),
        _leaf(f"{path}/norm/scale", (width,)),
        *_linear(f"{path}/fc1", width, hidden),
        *_norm(f"{path}/response_norm", hidden),
        *_linear(f"{path}/fc2", hidden, width),
        *_linear(f"{path}/film", time_width, 2 * width),
    ]


def uvit_leaves(config: UViTConfig, llm_width: int) -> list[Leaf]:
    """The leaves of JanusFlow's generation encoder and decoder, with their norms and linear maps."""
    width, wide = config.width, 2 * config.width
    encoder = [_convnext(f"gen_encoder/blocks_{i}", config, width, llm_width) for i in range(config.encoder_depth)]
    decoder = [_convnext(f"gen_decoder/blocks_{i}", config, wide, llm_width) for i in range(config.decoder_depth)]
    return [
        *_mlp("gen_encoder/time_embed", width, llm_width, llm_width),
        *_conv("gen_encoder/conv_in", config.patch_size, config.latent_channels, width),
        *itertools.chain.from_iterable(encoder),
        *_linear("gen_adaptor", width, llm_width),
        _leaf("gen_decoder_adaptor/norm/scale", (llm_width,)),
        *_linear("gen_decoder_adaptor/linear", llm_width, width),
        _leaf("gen_decoder/norm_in/scale", (width,)),
        *itertools.chain.from_iterable(decoder),
        _leaf("gen_decoder/norm_out/scale", (wide,)),
        *_linear("gen_decoder/head", wide, config.patch_numbers, _POINTWISE),
    ]


def llama_leaves(config: LlamaConfig) -> list[Leaf]:
    """The leaves of the language model, without a prefix."""
    width, heads, kv_heads, head_dim = config.width, config.num_heads, config.num_kv_heads, config.head_dim
    layer = [
        _leaf("attn_norm/scale", (width,)),
        _leaf("mlp_norm/scale", (width,)),
        _leaf("attn/q/weight", (heads, head_dim, width), "h k d -> (h k) d"),
        _leaf("attn/k/weight", (kv_heads, head_dim, width), "h k d -> (h k) d"),
        _leaf("attn/v/weight", (kv_heads, head_dim, width), "h k d -> (h k) d"),
        _leaf("attn/out/weight", (width, heads, head_dim), "d h k -> d (h k)"),
        _leaf("mlp/gate/weight", (config.mlp_dim, width)),
        _leaf("mlp/up/weight", (config.mlp_dim, width)),
        _leaf("mlp/down/weight", (width, config.mlp_dim)),
    ]
    return [
        _leaf("embed/embedding", (config.vocab_size, width)),
        *_stacked("layers", config.depth, layer),
        _leaf("norm/scale", (width,)),
        _leaf("head/weight", (config.vocab_size, width)),
    ]


def _mlp(path: str, inputs: int, hidden: int, outputs: int) -> list[Leaf]:
    return [*_linear(f"{path}/fc1", inputs, hidden), *_linear(f"{path}/fc2", hidden, outputs)]


def leaves(config: ModelConfig | SiglipConfig | VQConfig | VAEConfig | LlamaConfig) -> list[Leaf]:
    """Every leaf of the model's tree; for the config of one part, that part's leaves under its place in the tree."""
    match config:
        case SiglipConfig():
            return _under("und_encoder", siglip_leaves(config))
        case VQConfig():
            return _under("gen_encoder", vq_leaves(config))
        case VAEConfig():
            return _under("vae", vae_leaves(config))
        case LlamaConfig():
            return _under("llm", llama_leaves(config))
        case JanusFlowConfig():
            return [
                *leaves(config.und_encoder),
                *_linear("und_adaptor", config.und_encoder.width, config.llm.width),
                _leaf("beg_of_und/embedding", (1, config.llm.width)),
                *uvit_leaves(config.gen_encoder, config.llm.width),
                *([] if config.vae is None else leaves(config.vae)),
                *leaves(config.llm),
            ]
    width, vq = config.llm.width, config.gen_encoder
    return [
        *leaves(config.und_encoder),
        *_mlp("und_adaptor", config.und_encoder.width, width, width),
        *leaves(vq),
        _leaf("gen_embed/embedding", (vq.codebook_size, vq.code_dim)),
        *_mlp("gen_adaptor", vq.code_dim, width, width),
        *_mlp("gen_head", width, config.gen_head_width, vq.codebook_size),
        *leaves(config.llm),
    ]
