"""An encoder that begins as principal components: of 2x2 squares, again and again, at every scale.

A random convolutional encoder mixes the pixels of a patch with random signs, and codes made of what it gives do not
even tell a patch's colour; to train it takes long. These parameters are of the released architecture, too: residual
blocks add nothing yet, and each downsampling keeps of its 2x2 squares what varies most in the images. What comes out
is, but for what was left, the patch turned: as far from another patch's as the patches are apart.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from janus_jax.config import AutoencoderConfig
from janus_jax.errors import JanusError

Params = dict[str, Any]

_STEADY = 1024.0
"""Of the channels that are constant: far above what patches give, so that they alone settle the last norm's deviation,
and what a patch gives does not depend on the rest of its image."""


class Components(NamedTuple):
    """What varies most, first things first.

    Attributes:
      mean: of the features.
      variances: along the directions.
      directions: orthonormal, one a column.
    """

    mean: Float[Array, " Z"]
    variances: Float[Array, " C"]
    directions: Float[Array, "Z C"]


def components(features: Float[Array, "M Z"], count: int) -> Components:
    """The first principal components."""
    mean = jnp.mean(features, axis=0)
    centred = features - mean
    variances, directions = jnp.linalg.eigh(centred.T @ centred / features.shape[0])
    return Components(mean, variances[::-1][:count], directions[:, ::-1][:, :count])


def half_whitened(features: Float[Array, "M Z"], count: int) -> tuple[Float[Array, "C Z"], Float[Array, " C"]]:
    """Weight and bias of a linear map onto the first principal components, half whitened.

    Deviations become their square roots, and that of the first one 1. So a patch's colour, what varies most, counts
    most, and what varies less still counts.
    """
    mean, variances, directions = components(features, count)
    variances = jnp.maximum(variances, 1e-6)
    weight = (directions / (variances * variances[0]) ** 0.25).T
    return weight, -weight @ mean


def beside_constant(
    weight: Float[Array, "C Z"], bias: Float[Array, " C"]
) -> tuple[Float[Array, "C1 Z"], Float[Array, " C1"]]:
    """A linear map whose last dimension, one more, is 1: it makes the sphere of latents flat where they lie."""
    return jnp.concatenate([weight, jnp.zeros_like(weight[:1])]), jnp.append(bias, 1.0)


def check_principal(config: AutoencoderConfig, outputs: int) -> None:
    """Refuses an autoencoder whose encoder cannot begin so.

    Args:
      outputs: numbers that the encoder gives of a place: a tokenizer's z_channels, twice a VAE's latent_channels.

    Raises:
      JanusError: it has too few channels, or does not double them at its lowest resolution.
    """
    channels = (config.base_channels, *config.level_channels)
    half = channels[-2]
    in_group = channels[-1] // config.norm_groups
    if channels[0] < 3 or channels[-1] != 2 * half or in_group < 4 or in_group % 2 or outputs < half:
        raise JanusError(
            f"An encoder that begins as principal components has base_channels of 3 or more, twice as many channels at "
            f"the lowest resolution as before it, an even number of 4 or more of them in a norm's group and {half} or "
            f"more outputs; config.model has base_channels {channels[0]}, channel_multipliers "
            f"{config.channel_multipliers}, norm_groups {config.norm_groups} and {outputs} outputs (z_channels, or "
            f"twice a VAE's latent_channels)."
        )


def as_principal(encoder: Params, pixels: Float[Array, "B H W 3"], config: AutoencoderConfig) -> Params:
    """The encoder's parameters as principal components of these images, which have pixels in [-1, 1]."""
    result = encoder | {"conv_in": _convolution(encoder["conv_in"], _first(3, config.base_channels)[None, None])}
    x = pixels @ _first(3, config.base_channels)
    *widths, _ = config.level_channels
    for i, width in enumerate(widths):
        level = _silent(encoder[f"down_{i}"])
        if width != x.shape[-1]:
            level["res_0"]["shortcut"] = _linear(_first(x.shape[-1], width))
            x = x @ _first(x.shape[-1], width)
        rows, height, breadth, _ = x.shape
        squares = x.reshape(rows, height // 2, 2, breadth // 2, 2, width).swapaxes(2, 3)
        squares = squares.reshape(rows, height // 2, breadth // 2, 4 * width)
        mean, _, directions = components(squares.reshape(-1, 4 * width), width)
        kernel, bias = directions.reshape(2, 2, width, width), -mean @ directions
        level["downsample"] = _convolution(encoder[f"down_{i}"]["downsample"], kernel, bias)
        result[f"down_{i}"], x = level, squares @ directions + bias
    lowest = f"down_{len(widths)}"
    result[lowest], result["mid"] = _silent(encoder[lowest]), _silent(encoder["mid"])
    outputs = encoder["conv_out"]["bias"].shape[0]
    split, join = _through_norm(x.shape[-1], outputs, config.norm_groups)
    result[lowest]["res_0"]["shortcut"] = split
    result["conv_out"] = _convolution(encoder["conv_out"], join[None, None])
    return result


def _through_norm(inputs: int, outputs: int, groups: int) -> tuple[Params, Float[Array, "C Z"]]:
    """A linear map before the last norm and swish, and one after them, that give back what goes in.

    Each channel goes through beside its negative, as swish(x) - swish(-x) = x, and in the same group, whose mean is
    then zero. A group's last channel is a constant instead, so that its deviation is one, too.
    """
    channel = jnp.arange(inputs)
    # Dealt out in turns, so that the constants are in the place of the last components, which vary least.
    place = channel % groups * (2 * inputs // groups) + channel // groups
    negative = place + inputs // groups
    steady = channel >= inputs - groups
    weight = jnp.zeros((2 * inputs, inputs)).at[place, channel].set(1.0).at[negative, channel].set(-1.0)
    constant = jnp.where(steady, _STEADY, 0.0)
    bias = jnp.zeros(2 * inputs).at[place].set(constant).at[negative].set(-constant)
    deviation = _STEADY * (groups / inputs) ** 0.5
    join = jnp.zeros((2 * inputs, outputs))
    join = join.at[place, channel].set(deviation * ~steady).at[negative, channel].set(-deviation * ~steady)
    return {"weight": jnp.where(steady, 0.0, weight), "bias": bias}, join


def _silent(blocks: Params) -> Params:
    """Residual blocks that add nothing."""
    return {
        name: block
        | {last: {k: jnp.zeros_like(v) for k, v in block[last].items()} for last in ("conv2", "out") if last in block}
        for name, block in blocks.items()
    }


def _first(inputs: int, outputs: int) -> Float[Array, "I O"]:
    """A map that keeps the first channels, and adds empty ones where there are more."""
    return jnp.eye(inputs, outputs)


def _linear(weight: Float[Array, "I O"]) -> Params:
    return {"weight": weight.T, "bias": jnp.zeros(weight.shape[-1])}


def _convolution(old: Params, kernel: Float[Array, "h w I O"], bias: Float[Array, " O"] | float = 0.0) -> Params:
    """A 3x3 convolution of which only these taps are not zero: the middle one, or the 2x2 of a downsampling."""
    taps = slice(0, 2) if kernel.shape[0] == 2 else slice(1, 2)
    return {
        "kernel": jnp.zeros_like(old["kernel"]).at[taps, taps].set(kernel),
        "bias": jnp.zeros_like(old["bias"]) + bias,
    }
