"""What a step has to compute, in floating-point operations, and what a device could: together, the MFU.

Counted are matrix products and convolutions that the samples need: real places and images, no padding, attention
within each sample and only to earlier places, heads at supervised places alone. A product's backward pass is one more
of it where the gradient goes on to what stands before, and another where its own weight trains: so what is frozen
costs its forward pass, and once more where a gradient has to pass through. What remat computes again is not counted
(PaLM's "model FLOPs utilization", arXiv 2204.02311, appendix B), nor are norms, activations and the optimizer.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from janus_jax.batch import NO_IMAGE, NO_POSITION, PADDING_SEGMENT, Batch
from janus_jax.config import Dtype, JanusConfig, JanusFlowConfig, ModelConfig

PEAK_FLOPS: tuple[tuple[str, dict[Dtype, float]], ...] = (
    ("NVIDIA H200 NVL", {"bfloat16": 836e12, "float32": 60e12}),
    ("NVIDIA H200", {"bfloat16": 989e12, "float32": 67e12}),
    ("NVIDIA H100 PCIe", {"bfloat16": 756e12, "float32": 51e12}),
    ("NVIDIA H100 NVL", {"bfloat16": 836e12, "float32": 60e12}),
    ("NVIDIA H100", {"bfloat16": 989e12, "float32": 67e12}),
    ("NVIDIA A100", {"bfloat16": 312e12, "float32": 19.5e12}),
    ("TPU v4", {"bfloat16": 275e12}),
    ("TPU v5 lite", {"bfloat16": 197e12}),
    ("TPU v5e", {"bfloat16": 197e12}),
    ("TPU v5", {"bfloat16": 459e12}),
    ("TPU v6", {"bfloat16": 918e12}),
    # A chip of 2307e12 is two devices.
    ("TPU7x", {"bfloat16": 1153.5e12}),
)
"""FLOP/s of one device, dense, by its makers' data sheets; the first row whose name a device's kind begins with.

float32 without TF32, as this project computes it; TPUs have no units for it.
"""


def peak_flops(device_kind: str, dtype: Dtype) -> float | None:
    """FLOP/s that one device could do in products of `dtype`; None where nobody says.

    Args:
      device_kind: as `jax.Device` names it.
    """
    dtype = "bfloat16" if dtype == "float16" else dtype
    return next((peaks.get(dtype) for name, peaks in PEAK_FLOPS if device_kind.startswith(name)), None)


class Amounts(NamedTuple):
    """How much there is of everything that costs something in a batch; or what one of each costs.

    Attributes:
      places: that are no padding.
      pairs: of a place and one that it attends to, itself included.
      und_images: images to understand.
      gen_images: images to generate, whose ids, or latents, are embedded and supervised.
      tokenized_images: those of them whose ids, or latents, are still to be made.
      text_targets: supervised text places.
    """

    places: float
    pairs: float
    und_images: float
    gen_images: float
    tokenized_images: float
    text_targets: float

    def at(self, costs: "Amounts") -> float:
        """What all of it costs, at what one of each does."""
        return float(sum(amount * cost for amount, cost in zip(self, costs, strict=True)))


def amounts(batch: Batch, config: ModelConfig) -> Amounts:
    """What a batch of numpy arrays holds."""
    length = batch.shape[1]
    rows = np.arange(len(batch.tokens))[:, None] * (length + 1)
    sizes = np.bincount((batch.segment_ids + rows)[batch.segment_ids != PADDING_SEGMENT]).astype(np.int64)
    gen_images = 0 if batch.gen_starts is None else np.sum(batch.gen_starts != NO_POSITION)
    return Amounts(
        places=float(sizes.sum()),
        pairs=float(np.sum(sizes * (sizes + 1) // 2)),
        und_images=float(np.sum(batch.und_patch_index != NO_IMAGE) / config.und_encoder.num_patches),
        gen_images=float(gen_images),
        tokenized_images=float(gen_images) if batch.gen_ids is None and batch.gen_latents is None else 0.0,
        text_targets=0.0 if batch.text_targets is None else float(np.sum(batch.text_targets != NO_POSITION)),
    )


def step_costs(config: ModelConfig, trained: Collection[str]) -> Amounts:
    """Floating-point operations of a step, forward and backward, for one of each.

    Args:
      trained: names of the parameters that train. Those that a model of this config has not, such as LoRA's factors,
        let the gradient through and cost nothing by themselves.
    """
    llm, width = config.llm, config.llm.width
    heads = llm.head_dim * llm.width

    understanding = _understanding(config, trained)
    generation = _Pass(trained)
    if isinstance(config, JanusConfig):
        generation.enter("gen_embed")
        generation.mlp("gen_adaptor", config.num_gen_tokens, config.gen_encoder.code_dim, width, width)
    else:
        _encoded_latents(generation, config)

    place = _Pass(trained, understanding.reached or generation.reached)
    place.enter("llm/embed", "llm/layers")
    for name, weights in (
        ("attn/q", llm.num_heads * heads),
        ("attn/k", llm.num_kv_heads * heads),
        ("attn/v", llm.num_kv_heads * heads),
        ("attn/out", llm.num_heads * heads),
        ("mlp/gate", width * llm.mlp_dim),
        ("mlp/up", width * llm.mlp_dim),
        ("mlp/down", width * llm.mlp_dim),
    ):
        place.product(f"llm/layers/{name}/weight", 1, llm.depth * weights)
    pair = _Pass(trained, place.reached)
    pair.attention(1, llm.depth * llm.num_heads * llm.head_dim)
    place.enter("llm/norm")

    text = _Pass(trained, place.reached)
    text.product("llm/head/weight", 1, llm.vocab_size * width)
    image = _Pass(trained, place.reached)
    if isinstance(config, JanusConfig):
        image.mlp("gen_head", config.num_gen_tokens, width, config.gen_head_width, config.gen_encoder.codebook_size)
        making = config.gen_encoder.encode_flops_per_image
    else:
        image.reached |= generation.reached  # By the skip.
        _velocities(image, config)
        _alignment(image, config, trained)
        making = 0 if config.vae is None else config.vae.encode_flops(config.gen_image_size)
    return Amounts(
        places=place.flops,
        pairs=pair.flops,
        und_images=understanding.flops,
        gen_images=generation.flops + image.flops,
        tokenized_images=making,
        text_targets=text.flops,
    )


def _encoded_latents(way: "_Pass", config: JanusFlowConfig) -> None:
    """Latents, and their time, on their way to the transformer."""
    gen, width = config.gen_encoder, config.llm.width
    way.product("gen_encoder/time_embed/fc1/weight", 1, gen.width * width)
    way.enter("gen_encoder/time_embed/fc1")
    way.product("gen_encoder/time_embed/fc2/weight", 1, width**2)
    way.enter("gen_encoder/time_embed/fc2")
    way.product("gen_encoder/conv_in/kernel", gen.num_tokens, gen.patch_dim * gen.width)
    way.enter("gen_encoder/conv_in")
    for block in range(gen.encoder_depth):
        way.conv_next(f"gen_encoder/blocks_{block}", config, gen.width)
    way.product("gen_adaptor/weight", gen.num_tokens, gen.width * width)
    way.enter("gen_adaptor")


def _velocities(way: "_Pass", config: JanusFlowConfig) -> None:
    """From the transformer to velocities."""
    gen, width = config.gen_encoder, config.llm.width
    way.enter("gen_decoder_adaptor/norm")
    way.product("gen_decoder_adaptor/linear/weight", gen.num_tokens, gen.width * width)
    way.enter("gen_decoder_adaptor", "gen_decoder/norm_in")
    for block in range(gen.decoder_depth):
        way.conv_next(f"gen_decoder/blocks_{block}", config, 2 * gen.width)
    way.enter("gen_decoder/norm_out")
    way.product("gen_decoder/head/weight", gen.num_tokens, 2 * gen.width * gen.patch_dim)


def _alignment(way: "_Pass", config: JanusFlowConfig, trained: Collection[str]) -> None:
    """SigLIP's look at an image to generate, where states are to align with it."""
    if any(name.startswith("aligner/") for name in trained):
        way.flops += _seen(config, _Pass(())).flops


def _understanding(config: ModelConfig, trained: Collection[str]) -> "_Pass":
    """An image to understand on its way to the transformer."""
    patches, width = config.und_encoder.num_patches, config.llm.width
    understanding = _Pass(trained)
    if isinstance(config, JanusFlowConfig):
        _seen(config, understanding)
        understanding.product("und_adaptor/weight", patches, config.und_encoder.width * width)
        understanding.enter("und_adaptor", "beg_of_und")
        return understanding
    if config.understanding_encoder == "gen_encoder":
        gen = config.gen_encoder
        understanding.flops += gen.encode_flops_per_image
        understanding.enter("gen_embed")
        understanding.mlp("gen_adaptor", gen.num_tokens, gen.code_dim, width, width)
        return understanding
    _seen(config, understanding)
    understanding.mlp("und_adaptor", patches, config.und_encoder.width, width, width)
    return understanding


def _seen(config: ModelConfig, understanding: "_Pass") -> "_Pass":
    """An image through SigLIP."""
    und, patches = config.und_encoder, config.und_encoder.num_patches
    understanding.product("und_encoder/patch_embed/kernel", patches, 3 * und.patch_size**2 * und.width)
    understanding.enter("und_encoder/patch_embed", "und_encoder/pos_embed", "und_encoder/blocks")
    for name, weights in (
        ("attn/qkv", 3 * und.width**2),
        ("attn/out", und.width**2),
        ("mlp/fc1", und.width * und.mlp_dim),
        ("mlp/fc2", und.width * und.mlp_dim),
    ):
        understanding.product(f"und_encoder/blocks/{name}/weight", patches, und.depth * weights)
    understanding.attention(patches**2, und.depth * und.width)
    understanding.enter("und_encoder/norm")
    return understanding


class _Pass:
    """Operations added up along the way of the data, and whether anything before has use for a gradient.

    Attributes:
      flops: so far.
      reached: whether the gradient goes back beyond here.
    """

    def __init__(self, trained: Collection[str], reached: bool = False) -> None:
        self.flops = 0
        self.reached = reached
        self._trained = trained

    def enter(self, *parts: str) -> None:
        """From here on, these parts want a gradient where some of them trains. Those in a loop enter it together."""
        self.reached |= any(
            name.startswith(tuple(f"{part}/" for part in parts)) or name in parts for name in self._trained
        )

    def product(self, weight: str, rows: int, size: int) -> None:
        """Of `rows` rows and a weight of `size` numbers."""
        self.flops += 2 * rows * size * (1 + self.reached + (weight in self._trained))

    def mlp(self, name: str, rows: int, inputs: int, hidden: int, outputs: int) -> None:
        """Of two layers."""
        for layer, size in (("fc1", inputs * hidden), ("fc2", hidden * outputs)):
            self.product(f"{name}/{layer}/weight", rows, size)
            self.enter(f"{name}/{layer}")

    def conv_next(self, name: str, config: JanusFlowConfig, channels: int) -> None:
        """A ConvNeXt block over an image's places."""
        gen, places, hidden = config.gen_encoder, config.num_gen_tokens, config.gen_encoder.mlp_ratio * channels
        self.product(f"{name}/depthwise/kernel", places, gen.kernel_size**2 * channels)
        self.enter(f"{name}/depthwise", f"{name}/norm")
        self.product(f"{name}/fc1/weight", places, channels * hidden)
        self.enter(f"{name}/fc1", f"{name}/response_norm")
        self.product(f"{name}/fc2/weight", places, channels * hidden)
        self.product(f"{name}/film/weight", 1, config.llm.width * 2 * channels)
        self.enter(name)

    def attention(self, pairs: int, width: int) -> None:
        """Scores and mixing: two products, with an operand each that has no weight."""
        self.flops += 4 * pairs * width * (1 + 2 * self.reached)
