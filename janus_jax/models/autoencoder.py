"""Convolutional encoder and decoder of the image tokenizer and the VAE (VQGAN, arXiv 2012.09841).

Images are channels-last with pixels in [-1, 1].
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from janus_jax.config import AutoencoderConfig, Execution
from janus_jax.models.attention import attend
from janus_jax.models.layers import Conv, GroupNorm, Linear, precision


class ResBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a linear shortcut if the width changes."""

    channels: int
    config: AutoencoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        c, e = self.config, self.execution
        y = nn.silu(GroupNorm(c.norm_groups, c.norm_eps, e, name="norm1")(x))
        y = Conv(self.channels, 3, execution=e, name="conv1")(y)
        y = nn.silu(GroupNorm(c.norm_groups, c.norm_eps, e, name="norm2")(y))
        y = Conv(self.channels, 3, execution=e, name="conv2")(y)
        if x.shape[-1] != self.channels:
            x = Linear((self.channels,), ("conv_out", "conv_in"), e, name="shortcut")(x)
        return x + y


class AttentionBlock(nn.Module):
    """Single-head attention among all positions of the grid, with a residual."""

    config: AutoencoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        c, e = self.config, self.execution
        batch, height, width, channels = x.shape
        normed = GroupNorm(c.norm_groups, c.norm_eps, e, name="norm")(x).reshape(batch, -1, channels)
        query, key, value = (
            Linear((channels,), ("conv_out", "conv_in"), e, name=name)(normed)[:, None] for name in "qkv"
        )
        y = attend(query, key, value)[:, 0].reshape(batch, height, width, channels)
        return x + Linear((channels,), ("conv_out", "conv_in"), e, name="out")(y)


class Middle(nn.Module):
    """Residual block, attention and residual block at the lowest resolution."""

    channels: int
    config: AutoencoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = ResBlock(self.channels, self.config, self.execution, name="res_0")(x)
        x = AttentionBlock(self.config, self.execution, name="attn")(x)
        return ResBlock(self.channels, self.config, self.execution, name="res_1")(x)


class Level(nn.Module):
    """Residual blocks at one resolution, followed by a layer that changes the resolution.

    Attributes:
      with_attention: Whether attention follows each residual block.
      resample: Constructor of the layer that changes the resolution; None keeps the resolution.
    """

    channels: int
    num_res_blocks: int
    with_attention: bool
    config: AutoencoderConfig
    execution: Execution
    resample: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        for j in range(self.num_res_blocks):
            x = ResBlock(self.channels, self.config, self.execution, name=f"res_{j}")(x)
            if self.with_attention:
                x = AttentionBlock(self.config, self.execution, name=f"attn_{j}")(x)
        return x if self.resample is None else self.resample(self.channels, 3, execution=self.execution)(x)


# Pads at the right and the bottom only, as VQGAN does.
Downsample = functools.partial(Conv, stride=2, padding=((0, 1), (0, 1)), name="downsample")


class Upsample(Conv):
    """Nearest-neighbor upsampling by 2 and a 3x3 convolution, computed with 4/9 of their FLOPs.

    In the upsampled image a 3x3 window covers only 2x2 distinct pixels of the small image. Which of the nine weights
    share a pixel depends on whether the row and the column of the output are even or odd. For each of these four cases
    the shared weights are added, and the resulting 2x2 kernel is applied to the small image.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C2"]:
        batch, height, width, channels = x.shape
        kernel, bias = self.weights(channels)
        by_parity = self._fold(kernel, axis=0)
        parities = [
            lax.conv_general_dilated(
                x.astype(kernel.dtype),
                folded,
                window_strides=(1, 1),
                padding=((1 - row, row), (1 - column, column)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=precision(kernel.dtype),
            )
            for row in range(2)
            for column, folded in enumerate(self._fold(by_parity[row], axis=1))
        ]
        y = jnp.stack(parities, axis=3).reshape(batch, height, width, 2, 2, self.channels)
        y = y.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, self.channels)
        return y + bias

    @staticmethod
    def _fold(kernel: Array, axis: int) -> tuple[Array, Array]:
        """Returns the kernels of the even and the odd outputs along an axis: two weights instead of three."""
        first, middle, last = jnp.split(kernel.astype(jnp.float32), 3, axis=axis)
        even = jnp.concatenate([first, middle + last], axis=axis)
        odd = jnp.concatenate([first + middle, last], axis=axis)
        return even.astype(kernel.dtype), odd.astype(kernel.dtype)


class Encoder(nn.Module):
    """Maps pixels to a grid of features with `outputs` channels."""

    outputs: int
    config: AutoencoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w Z"]:
        c, e = self.config, self.execution
        x = Conv(c.base_channels, 3, execution=e, name="conv_in")(pixels)
        lowest = len(c.level_channels) - 1
        for i, channels in enumerate(c.level_channels):
            resample = Downsample if i < lowest else None
            attends = i == lowest and c.lowest_level_attention
            x = Level(channels, c.num_res_blocks, attends, c, e, resample, name=f"down_{i}")(x)
        x = Middle(c.level_channels[-1], c, e, name="mid")(x)
        x = nn.silu(GroupNorm(c.norm_groups, c.norm_eps, e, name="norm_out")(x))
        return Conv(self.outputs, 3, execution=e, name="conv_out")(x)


class Decoder(nn.Module):
    """Maps a grid of features to pixels. Level `up_0` has the lowest resolution."""

    config: AutoencoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W 3"]:
        c, e = self.config, self.execution
        x = Conv(c.level_channels[-1], 3, execution=e, name="conv_in")(z)
        x = Middle(c.level_channels[-1], c, e, name="mid")(x)
        finest = len(c.level_channels) - 1
        for i, channels in enumerate(reversed(c.level_channels)):
            resample = functools.partial(Upsample, name="upsample") if i < finest else None
            attends = i == 0 and c.lowest_level_attention
            x = Level(channels, c.num_res_blocks + 1, attends, c, e, resample, name=f"up_{i}")(x)
        x = nn.silu(GroupNorm(c.norm_groups, c.norm_eps, e, name="norm_out")(x))
        return Conv(3, 3, execution=e, name="conv_out")(x)
