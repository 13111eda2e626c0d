"""Initializes the encoder of an image tokenizer as principal component analysis (PCA) of image patches.

A random convolutional encoder mixes the pixels of a patch with random signs. The codes of its output do not even
determine the color of a patch, and training such an encoder takes long. This initialization keeps the released
architecture: residual blocks and attention add zero, and each downsampling convolution projects 2x2 squares onto their
principal components. The output is a rotation of the patch without the components of least variance, so it keeps the
distances between patches.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from janus_jax.config import AutoencoderConfig, VAEConfig, VQConfig
from janus_jax.errors import JanusError
from janus_jax.models.backbone import to_pixels
from janus_jax.models.vae import VAE
from janus_jax.models.vq import VQTokenizer

Params = dict[str, Any]

_CONSTANT = 1024.0
"""Value of the constant channels. The constant dominates the standard deviation in the last group norm, so that the
features of a patch do not depend on the rest of the image."""


class Components(NamedTuple):
    """Principal components, in order of decreasing variance.

    Attributes:
      mean: Mean of the features.
      variances: Variances along the components.
      directions: Orthonormal directions, as columns.
    """

    mean: Float[Array, " Z"]
    variances: Float[Array, " C"]
    directions: Float[Array, "Z C"]


def principal_components(features: Float[Array, "M Z"], count: int) -> Components:
    """Returns the first `count` principal components."""
    mean = jnp.mean(features, axis=0)
    centered = features - mean
    variances, directions = jnp.linalg.eigh(centered.T @ centered / features.shape[0])
    return Components(mean, variances[::-1][:count], directions[:, ::-1][:, :count])


def half_whitening(features: Float[Array, "M Z"], count: int) -> tuple[Float[Array, "C Z"], Float[Array, " C"]]:
    """Returns weight and bias of a linear map onto half-whitened principal components.

    The standard deviation of a component becomes its square root, scaled so that the first is 1. The color of a patch,
    which varies most, keeps the largest variance, but details are not negligible.
    """
    mean, variances, directions = principal_components(features, count)
    variances = jnp.maximum(variances, 1e-6)
    weight = (directions / (variances * variances[0]) ** 0.25).T
    return weight, -weight @ mean


def initialize_vq(config: VQConfig, images: UInt8[Array, "N S S 3"]) -> Callable[[Params], Params]:
    """Returns a function that replaces the encoder and `quant_conv` of a VQ tokenizer by the PCA of these images.

    Raises:
      JanusError: The architecture cannot represent the PCA.
    """
    check_architecture(config, config.z_channels)

    def initialize(params: Params) -> Params:
        pixels = to_pixels(jnp.asarray(images))
        params = params | {"encoder": pca_encoder(params["encoder"], pixels, config)}
        weight, bias = half_whitening(_features(VQTokenizer(config), params, pixels), config.code_dim - 1)
        # The constant last dimension makes the unit sphere nearly flat around the latents.
        quant_conv = {"weight": jnp.concatenate([weight, jnp.zeros_like(weight[:1])]), "bias": jnp.append(bias, 1.0)}
        return params | {"quant_conv": quant_conv}

    return initialize


def initialize_vae(
    config: VAEConfig, images: UInt8[Array, "N S S 3"], deviation: float = 0.1
) -> Callable[[Params], Params]:
    """Returns a function that replaces the encoder and `quant_conv` of a VAE by the PCA of these images.

    The mean variance of the latents is 1.

    Args:
      deviation: Standard deviation of the noise added to latents in training. The noise makes the decoder robust to
        small errors.

    Raises:
      JanusError: The architecture cannot represent the PCA.
    """
    latents = config.latent_channels
    check_architecture(config, 2 * latents)
    available = config.level_channels[-2] - config.norm_groups
    if latents > available:
        raise JanusError(
            f"The VAE has latent_channels {latents}, but its last norm passes {available} components; use at most "
            f"{available}, or more channels before the lowest resolution."
        )

    def initialize(params: Params) -> Params:
        pixels = to_pixels(jnp.asarray(images))
        params = params | {"encoder": pca_encoder(params["encoder"], pixels, config)}
        features = _features(VAE(config), params, pixels)
        weight, bias = half_whitening(features, latents)
        scale = jnp.std(features @ weight.T, axis=0, keepdims=True)
        unit = jnp.sqrt(jnp.mean(jnp.square(scale)))
        log_variance = jnp.full(latents, 2 * jnp.log(deviation))
        quant_conv = {
            "weight": jnp.concatenate([weight / unit, jnp.zeros_like(weight)]),
            "bias": jnp.concatenate([bias / unit, log_variance]),
        }
        return params | {"quant_conv": quant_conv}

    return initialize


def _features(model: VQTokenizer | VAE, params: Params, pixels: Float[Array, "B H W 3"]) -> Float[Array, "M Z"]:
    features: Any = model.apply({"params": params}, pixels, method=lambda model, pixels: model.encoder(pixels))
    return features.reshape(-1, features.shape[-1]).astype(jnp.float32)


def check_architecture(config: AutoencoderConfig, outputs: int) -> None:
    """Checks that the encoder can represent the PCA.

    Args:
      outputs: Output channels of the encoder: `z_channels` of a VQ tokenizer, twice `latent_channels` of a VAE.

    Raises:
      JanusError: The architecture has too few channels, or does not double them at the lowest resolution.
    """
    channels = (config.base_channels, *config.level_channels)
    half = channels[-2]
    group = channels[-1] // config.norm_groups
    if channels[0] < 3 or channels[-1] != 2 * half or group < 4 or group % 2 or outputs < half:
        raise JanusError(
            f"A PCA encoder needs base_channels of 3 or more, twice as many channels at the lowest resolution as "
            f"before it, an even number of 4 or more channels per norm group, and {half} or more outputs. config.model "
            f"has base_channels {channels[0]}, channel_multipliers {config.channel_multipliers}, norm_groups "
            f"{config.norm_groups} and {outputs} outputs (z_channels, or twice latent_channels)."
        )


def pca_encoder(encoder: Params, pixels: Float[Array, "B H W 3"], config: AutoencoderConfig) -> Params:
    """Returns the parameters of an encoder that computes the PCA of these images.

    Args:
      encoder: Old parameters of the encoder, which are replaced.
      pixels: Images with pixels in [-1, 1].
    """
    result = encoder | {"conv_in": _convolution(encoder["conv_in"], jnp.eye(3, config.base_channels)[None, None])}
    x = pixels @ jnp.eye(3, config.base_channels)
    *widths, _ = config.level_channels
    for i, width in enumerate(widths):
        level = _without_residuals(encoder[f"down_{i}"])
        if width != x.shape[-1]:
            level["res_0"]["shortcut"] = _linear(jnp.eye(x.shape[-1], width))
            x = x @ jnp.eye(x.shape[-1], width)
        batch, height, breadth, _ = x.shape
        squares = x.reshape(batch, height // 2, 2, breadth // 2, 2, width).swapaxes(2, 3)
        squares = squares.reshape(batch, height // 2, breadth // 2, 4 * width)
        mean, _, directions = principal_components(squares.reshape(-1, 4 * width), width)
        kernel, bias = directions.reshape(2, 2, width, width), -mean @ directions
        level["downsample"] = _convolution(encoder[f"down_{i}"]["downsample"], kernel, bias)
        result[f"down_{i}"], x = level, squares @ directions + bias
    lowest = f"down_{len(widths)}"
    result[lowest], result["mid"] = _without_residuals(encoder[lowest]), _without_residuals(encoder["mid"])
    outputs = encoder["conv_out"]["bias"].shape[0]
    split, join = _through_norm(x.shape[-1], outputs, config.norm_groups)
    result[lowest]["res_0"]["shortcut"] = split
    result["conv_out"] = _convolution(encoder["conv_out"], join[None, None])
    return result


def _through_norm(inputs: int, outputs: int, groups: int) -> tuple[Params, Float[Array, "C Z"]]:
    """Returns a linear map before the last norm and swish and one after them; together they are the identity.

    Each channel and its negative are in the same group, so that the mean of the group is zero, and swish(x) - swish(-x)
    = x. One channel per group is a large constant, which fixes the standard deviation of the group.
    """
    channel = jnp.arange(inputs)
    # Consecutive channels are in different groups, so that the constants replace the components of least variance.
    positive = channel % groups * (2 * inputs // groups) + channel // groups
    negative = positive + inputs // groups
    is_constant = channel >= inputs - groups
    weight = jnp.zeros((2 * inputs, inputs)).at[positive, channel].set(1.0).at[negative, channel].set(-1.0)
    constant = jnp.where(is_constant, _CONSTANT, 0.0)
    bias = jnp.zeros(2 * inputs).at[positive].set(constant).at[negative].set(-constant)
    deviation = _CONSTANT * (groups / inputs) ** 0.5
    join = jnp.zeros((2 * inputs, outputs))
    join = join.at[positive, channel].set(deviation * ~is_constant).at[negative, channel].set(-deviation * ~is_constant)
    return {"weight": jnp.where(is_constant, 0.0, weight), "bias": bias}, join


def _without_residuals(blocks: Params) -> Params:
    """Returns the blocks with zeros in the last layer of each residual block and attention."""
    return {
        name: block
        | {last: {k: jnp.zeros_like(v) for k, v in block[last].items()} for last in ("conv2", "out") if last in block}
        for name, block in blocks.items()
    }


def _linear(weight: Float[Array, "I O"]) -> Params:
    return {"weight": weight.T, "bias": jnp.zeros(weight.shape[-1])}


def _convolution(old: Params, kernel: Float[Array, "h w I O"], bias: Float[Array, " O"] | float = 0.0) -> Params:
    """Returns a 3x3 convolution with this 1x1 kernel at its center, or this 2x2 kernel of a downsampling."""
    taps = slice(0, 2) if kernel.shape[0] == 2 else slice(1, 2)
    return {
        "kernel": jnp.zeros_like(old["kernel"]).at[taps, taps].set(kernel),
        "bias": jnp.zeros_like(old["bias"]) + bias,
    }
