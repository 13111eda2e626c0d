"""FLOPs of a training step, the numerator of MFU.

The count includes the matrix products and convolutions that the examples need: tokens and images without padding,
attention within each example and to earlier tokens only, and heads at supervised positions only. The backward pass of a
product costs one more product if the gradient continues to earlier layers, and another one if the weight trains.

The count excludes recomputation under remat, norms, activation functions and the optimizer, as in the definition of
"model FLOPs utilization" (PaLM, arXiv 2204.02311, appendix B).
"""

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from janus_jax.batch import NO_IMAGE, NO_POSITION, PADDING_SEGMENT, Batch
from janus_jax.config import JanusConfig, JanusFlowConfig, ModelConfig
from janus_jax.models.backbone import apply
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.models.janus import Janus
from janus_jax.models.janusflow import JanusFlow


class ItemCounts(NamedTuple):
    """Number of items of each kind in a step. The same type holds the FLOPs of one item of each kind.

    Attributes:
      tokens: Positions that are not padding.
      pairs: Pairs of a position and a position that it attends to, including itself.
      und_images: Input images.
      gen_images: Target images; the step embeds them and computes their loss.
      encoded_images: Target and context images whose tokens or latents the step computes.
      text_targets: Supervised text positions.
      context_images: Context images; the step embeds them.
    """

    tokens: float
    pairs: float
    und_images: float
    gen_images: float
    encoded_images: float
    text_targets: float
    context_images: float = 0.0

    def flops(self, per_item: "ItemCounts") -> float:
        """Returns the FLOPs of all items, given the FLOPs of one item of each kind."""
        return float(sum(count * cost for count, cost in zip(self, per_item, strict=True)))


def count_items(batch: Batch, config: ModelConfig) -> ItemCounts:
    """Returns the number of items of each kind in a batch of numpy arrays."""
    length = batch.shape[1]
    sequence_offsets = np.arange(len(batch.tokens))[:, None] * (length + 1)
    segments = (batch.segment_ids + sequence_offsets)[batch.segment_ids != PADDING_SEGMENT]
    lengths = np.bincount(segments).astype(np.int64)
    gen_images = 0 if batch.gen_starts is None else np.sum(batch.gen_starts != NO_POSITION)
    context_images = np.sum(batch.gen_token_index != NO_IMAGE) / config.num_gen_tokens - gen_images
    return ItemCounts(
        tokens=float(lengths.sum()),
        pairs=float(np.sum(lengths * (lengths + 1) // 2)),
        und_images=float(np.sum(batch.und_patch_index != NO_IMAGE) / config.und_encoder.num_patches),
        gen_images=float(gen_images),
        encoded_images=float(gen_images + context_images)
        if batch.gen_ids is None and batch.gen_latents is None
        else 0.0,
        text_targets=0.0 if batch.text_targets is None else float(np.sum(batch.text_targets != NO_POSITION)),
        context_images=float(context_images),
    )


def flops_per_item(config: ModelConfig, trained: Collection[str]) -> ItemCounts:
    """Returns the FLOPs of one item of each kind in a training step, forward and backward.

    Args:
      trained: Paths of the trained parameters. Paths that are not in the model, such as LoRA factors, make the gradient
        continue to their layer, but their own FLOPs are not counted.
    """
    sizes, llm = _parameter_sizes(config), config.llm
    understanding = _Path(sizes, trained)
    if isinstance(config, JanusFlowConfig):
        _siglip(config, understanding)
        understanding.linear("und_adaptor", config.und_encoder.num_patches)
        understanding.enter("beg_of_und")
    elif config.understanding_encoder == "gen_encoder":
        understanding.flops += _encoder_flops(config)
        understanding.enter("gen_embed")
        understanding.mlp("gen_adaptor", config.num_gen_tokens)
    else:
        _siglip(config, understanding)
        understanding.mlp("und_adaptor", config.und_encoder.num_patches)

    generation = _Path(sizes, trained)
    if isinstance(config, JanusConfig):
        generation.enter("gen_embed")
        generation.mlp("gen_adaptor", config.num_gen_tokens)
    else:
        generation.linear("gen_encoder/time_embed/fc1")
        generation.linear("gen_encoder/time_embed/fc2")
        generation.linear("gen_encoder/conv_in", config.gen_encoder.num_tokens, weight="kernel")
        for block in range(config.gen_encoder.encoder_depth):
            generation.conv_next(f"gen_encoder/blocks_{block}", config.num_gen_tokens)
        generation.linear("gen_adaptor", config.gen_encoder.num_tokens)

    token = _Path(sizes, trained, has_gradient=understanding.has_gradient or generation.has_gradient)
    # Treats the stacked layers as one layer: if any of them trains, the gradient passes through the others.
    token.enter("llm/embed", "llm/layers")
    for name in ("attn/q", "attn/k", "attn/v", "attn/out", "mlp/gate", "mlp/up", "mlp/down"):
        token.product(f"llm/layers/{name}/weight")
    pair = token.branch()
    pair.attention(1, llm.depth * llm.num_heads * llm.head_dim)
    token.enter("llm/norm")

    text = token.branch()
    text.product("llm/head/weight")
    image = token.branch()
    if isinstance(config, JanusConfig):
        image.mlp("gen_head", config.num_gen_tokens)
    else:
        # The decoder also reads the generation encoder's output, over the skip connection.
        image.has_gradient |= generation.has_gradient
        image.enter("gen_decoder_adaptor/norm")
        image.linear("gen_decoder_adaptor/linear", config.gen_encoder.num_tokens)
        image.enter("gen_decoder_adaptor", "gen_decoder/norm_in")
        for block in range(config.gen_encoder.decoder_depth):
            image.conv_next(f"gen_decoder/blocks_{block}", config.num_gen_tokens)
        image.enter("gen_decoder/norm_out")
        image.product("gen_decoder/head/weight", config.gen_encoder.num_tokens)
        if any(name.startswith("aligner/") for name in trained):
            # Representation alignment needs SigLIP's features of the target image, without a gradient.
            features = _Path(sizes, ())
            _siglip(config, features)
            image.flops += features.flops
    return ItemCounts(
        tokens=token.flops,
        pairs=pair.flops,
        und_images=understanding.flops,
        gen_images=generation.flops + image.flops,
        encoded_images=_encoder_flops(config),
        text_targets=text.flops,
        context_images=generation.flops,
    )


def _siglip(config: ModelConfig, path: "_Path") -> None:
    """Adds the FLOPs of SigLIP applied to one image."""
    und, patches = config.und_encoder, config.und_encoder.num_patches
    path.product("und_encoder/patch_embed/kernel", patches)
    path.enter("und_encoder/patch_embed", "und_encoder/pos_embed", "und_encoder/blocks")
    for name in ("attn/qkv", "attn/out", "mlp/fc1", "mlp/fc2"):
        path.product(f"und_encoder/blocks/{name}/weight", patches)
    path.attention(patches**2, und.depth * und.width)
    path.enter("und_encoder/norm")


class _Path:
    """Sequence of layers that one item passes. Adds up their FLOPs and records whether they need a gradient.

    Attributes:
      flops: FLOPs of the layers so far.
      has_gradient: Whether any layer so far trains, so that later layers must compute the gradient of their input.
    """

    def __init__(self, sizes: Mapping[str, int], trained: Collection[str], has_gradient: bool = False) -> None:
        self.flops = 0
        self.has_gradient = has_gradient
        self._sizes, self._trained = sizes, trained

    def branch(self) -> "_Path":
        """Returns a path that continues from here, with FLOPs that start at zero."""
        return _Path(self._sizes, self._trained, self.has_gradient)

    def enter(self, *parts: str) -> None:
        """Passes the layers with these subtrees of parameters without adding FLOPs."""
        prefixes = tuple(f"{part}/" for part in parts)
        self.has_gradient |= any(name.startswith(prefixes) or name in parts for name in self._trained)

    def product(self, weight: str, positions: int = 1) -> None:
        """Adds the FLOPs of the product of `positions` vectors with a weight."""
        self.flops += 2 * positions * self._sizes[weight] * (1 + self.has_gradient + (weight in self._trained))

    def linear(self, layer: str, positions: int = 1, weight: str = "weight") -> None:
        """Adds the FLOPs of a linear layer applied to `positions` vectors."""
        self.product(f"{layer}/{weight}", positions)
        self.enter(layer)

    def mlp(self, name: str, positions: int) -> None:
        """Adds the FLOPs of a two-layer MLP applied to `positions` vectors."""
        self.linear(f"{name}/fc1", positions)
        self.linear(f"{name}/fc2", positions)

    def conv_next(self, name: str, positions: int) -> None:
        """Adds the FLOPs of a ConvNeXt block applied to one image of `positions` positions."""
        self.linear(f"{name}/depthwise", positions, weight="kernel")
        self.enter(f"{name}/norm")
        self.linear(f"{name}/fc1", positions)
        self.enter(f"{name}/response_norm")
        self.product(f"{name}/fc2/weight", positions)
        self.product(f"{name}/film/weight")
        self.enter(name)

    def attention(self, pairs: int, width: int) -> None:
        """Adds the FLOPs of attention: scores and weighted values, two products whose operands both need a gradient."""
        self.flops += 4 * pairs * width * (1 + 2 * self.has_gradient)


@functools.cache
def _parameter_sizes(config: ModelConfig) -> dict[str, int]:
    """Returns the number of elements of each parameter by path."""
    params = flatten_dict(nn.unbox(abstract_params(make_model(config))), sep="/")
    return {name: math.prod(leaf.shape) for name, leaf in params.items()}


@functools.cache
def _encoder_flops(config: ModelConfig) -> int:
    """Returns the FLOPs of encoding one target image to image tokens or latents; 0 for JanusFlow without a VAE."""
    model, size = make_model(config), config.gen_image_size
    if isinstance(model, Janus):
        encode: Callable[..., Any] = model.tokenize
    else:
        assert isinstance(model, JanusFlow)
        if model.config.vae is None:
            return 0
        encode = model.encode_images
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return traced_flops(functools.partial(apply, encode), nn.unbox(abstract_params(make_model(config))), pixels)


def traced_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Returns the FLOPs of a function's matrix products and convolutions without running or compiling it.

    Args:
      arguments: Arrays or their shapes.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return sum(count * _equation_flops(equation) for equation, count in equations(jaxpr))


def equations(jaxpr: Jaxpr, count: int = 1) -> Iterator[tuple[JaxprEqn, int]]:
    """Yields each nested equation with the number of times that it runs; once for the body of a data-dependent loop.

    Args:
      count: Number of times that `jaxpr` itself runs.
    """
    for equation in jaxpr.eqns:
        inner = count * equation.params["length"] if equation.primitive.name == "scan" else count
        nested = list(jaxprs_in_params(equation.params))
        if not nested:
            yield equation, count
        for sub in nested:
            yield from equations(sub, inner)


def _equation_flops(equation: JaxprEqn) -> int:
    shapes = [getattr(variable.aval, "shape", ()) for variable in (*equation.invars, *equation.outvars)]
    if equation.primitive.name == "dot_general":
        ((contracted, _), _) = equation.params["dimension_numbers"]
        return 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = shapes[1]
        outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(shapes[-1]) * math.prod(kernel) // outputs
    return 0
