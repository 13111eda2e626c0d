"""An encoder that begins as a wavelet transform: means and differences of a patch's pixels, at every scale.

A random convolutional encoder mixes the pixels of a patch with random signs, and codes made of what it gives do not
even tell a patch's colour; to train it takes long. These parameters are of the released architecture, too: residual
blocks add nothing yet, and each downsampling takes means and differences of its 2x2 squares (Haar).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from janus_jax.config import VQConfig
from janus_jax.errors import JanusError

Params = dict[str, Any]

_STEADY = 64.0
"""Of the channels that are constant: far above what pixels in [-1, 1] give, so that they settle the last norm's
statistics, and what a patch gives does not depend on the rest of its image."""

_HAAR = np.array([[[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]], np.float32) / 4


def check_wavelets(config: VQConfig) -> None:
    """Refuses a tokenizer whose encoder cannot begin so.

    Raises:
      JanusError: it has too few channels, or does not double them at its lowest resolution.
    """
    channels = (config.base_channels, *config.level_channels)
    half = channels[-1] // 2
    if channels[0] < 6 or half != channels[-2] or config.norm_groups > 2 or config.z_channels < half:
        raise JanusError(
            f"An encoder that begins as wavelets has base_channels of 6 or more, twice as many channels at the lowest "
            f"resolution as before it, one or two norm_groups and z_channels of {half} or more; config.model has "
            f"base_channels {channels[0]}, channel_multipliers {config.channel_multipliers}, norm_groups "
            f"{config.norm_groups} and z_channels {config.z_channels}."
        )


def as_wavelets(encoder: Params, config: VQConfig) -> Params:
    """The encoder's parameters as a wavelet transform."""
    result = dict(encoder)
    result["conv_in"] = _convolution(encoder["conv_in"], _copies(3, config.base_channels))
    inputs, lowest = config.base_channels, len(config.level_channels) - 1
    for i, width in enumerate(config.level_channels):
        level = {name: _silent(block) for name, block in encoder[f"down_{i}"].items()}
        if i < lowest:
            if width != inputs:
                level["res_0"]["shortcut"] = _linear(_copies(inputs, width))
            level["downsample"] = _convolution(encoder[f"down_{i}"]["downsample"], _haar(width))
        else:
            level["res_0"]["shortcut"] = _opposites(inputs, config.norm_groups)
        result[f"down_{i}"], inputs = level, width
    result["mid"] = {name: _silent(block) for name, block in encoder["mid"].items()}
    # swish(x) - swish(-x) = x: what was split into opposites is whole again.
    half = inputs // 2
    whole = np.zeros((inputs, config.z_channels), np.float32)
    whole[np.arange(half), np.arange(half)] = 1
    whole[np.arange(half) + half, np.arange(half)] = -1
    result["conv_out"] = _convolution(encoder["conv_out"], whole[None, None])
    return result


def _silent(block: Params) -> Params:
    """A residual block that adds nothing."""
    last = {
        name: {part: jnp.zeros_like(leaf) for part, leaf in block[name].items()}
        for name in ("conv2", "out")
        if name in block
    }
    return block | last


def _copies(inputs: int, outputs: int) -> np.ndarray:
    """A 1x1 kernel after which the channels come again and again."""
    kernel = np.zeros((1, 1, inputs, outputs), np.float32)
    kernel[0, 0, np.arange(outputs) % inputs, np.arange(outputs)] = 1
    return kernel


def _haar(width: int) -> np.ndarray:
    """A 2x2 kernel: means of the first half of the channels, then differences of the first channels."""
    kernel = np.zeros((2, 2, width, width), np.float32)
    means = width - width // 2
    kernel[:, :, np.arange(means), np.arange(means)] = 0.25
    for k in range(width // 2):
        kernel[:, :, k // 9 * 3 + k % 3, means + k] = _HAAR[k // 3 % 3]
    return kernel


def _opposites(inputs: int, groups: int) -> Params:
    """A linear map to the channels and their negatives, but for two constants in each group."""
    weight = np.concatenate([np.eye(inputs, dtype=np.float32), -np.eye(inputs, dtype=np.float32)])
    bias = np.zeros(2 * inputs, np.float32)
    for last in range(2 * inputs // groups - 1, 2 * inputs, 2 * inputs // groups):
        weight[last - 1 : last + 1] = 0
        bias[last - 1 : last + 1] = _STEADY, -_STEADY
    return {"weight": jnp.asarray(weight), "bias": jnp.asarray(bias)}


def _linear(kernel: np.ndarray) -> Params:
    return {"weight": jnp.asarray(kernel[0, 0].T), "bias": jnp.zeros(kernel.shape[-1])}


def _convolution(old: Params, kernel: np.ndarray) -> Params:
    """A 3x3 convolution of which only these taps are not zero: the middle one, or the 2x2 of a downsampling."""
    taps = slice(0, 2) if kernel.shape[0] == 2 else slice(1, 2)
    return {"kernel": jnp.zeros_like(old["kernel"]).at[taps, taps].set(kernel), "bias": jnp.zeros_like(old["bias"])}
