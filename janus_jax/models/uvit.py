"""JanusFlow's generation encoder and decoder: ConvNeXt blocks before and after the transformer, with a skip connection.

Sources: JanusFlow (arXiv 2411.07975, §3.1 and appendix A), ConvNeXt V2 (arXiv 2301.00808, §3.2, for the global response
norm) and FiLM (arXiv 1709.07871). Latents are channels-last. Times are in [0, 1]: 0 is noise, 1 is the image.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from janus_jax.config import Execution, UViTConfig
from janus_jax.models.layers import CONV_INIT, Conv, Linear, RMSNorm, parameter, precision

# Times are multiplied by TIME_SCALE. The periods of the sinusoids range from 2 pi to about 2 pi MAX_PERIOD.
TIME_SCALE = 1000.0
MAX_PERIOD = 10000.0


class EncodedLatents(NamedTuple):
    """Outputs of the generation encoder for M images: inputs of the transformer and of the decoder.

    Attributes:
      features: One feature vector per image token; the decoder reads them over its skip connection.
      time: Embedding of each image's time.
    """

    features: Float[Array, "M h2 w2 C2"]
    time: Float[Array, "M D"]


def sinusoids(times: Float[Array, " M"], width: int) -> Float[Array, "M C"]:
    """Returns sinusoidal embeddings of times in [0, 1], float32: first all cosines, then all sines."""
    half = width // 2
    # Uses numpy for the frequencies, because the exponential function of accelerators is inexact.
    frequencies = np.exp(-math.log(MAX_PERIOD) / half * np.arange(half, dtype=np.float32))
    angles = TIME_SCALE * times.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbed(nn.Module):
    """Embeds times: fc2(silu(fc1(sinusoids(t))))."""

    inputs: int
    outputs: int
    execution: Execution

    @nn.compact
    def __call__(self, times: Float[Array, " M"]) -> Float[Array, "M D"]:
        x = sinusoids(times, self.inputs)
        x = nn.silu(Linear((self.outputs,), ("mlp", None), self.execution, name="fc1")(x))
        return Linear((self.outputs,), ("embed", "mlp"), self.execution, name="fc2")(x)


class DepthwiseConv(nn.Module):
    """Depthwise convolution."""

    config: UViTConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "M H W C"]) -> Float[Array, "M H W C"]:
        size, channels, e = self.config.kernel_size, x.shape[-1], self.execution
        kernel = parameter(self, "kernel", CONV_INIT, (size, size, 1, channels), (None, None, None, "embed"), e)
        bias = parameter(self, "bias", nn.initializers.zeros, (channels,), ("embed",), e)
        x, kernel = x.astype(e.dtype), kernel.astype(e.dtype)
        # A matrix of positions has more elements than the shifted copies, but products are ten times as fast.
        on_cpu = _by_matrix if x.shape[1] * x.shape[2] <= 8 * size**2 else _by_shifts
        return lax.platform_dependent(x, kernel, cpu=on_cpu, default=_by_convolution) + bias.astype(e.dtype)


def _by_convolution(x: Float[Array, "M H W C"], kernel: Float[Array, "P P 1 C"]) -> Float[Array, "M H W C"]:
    margin = kernel.shape[0] // 2
    # Replicates the small kernel. Otherwise the compiler splits the convolution by channels, as the kernel is sharded,
    # and sends all activations between devices.
    kernel = nn.with_logical_constraint(kernel, (None,) * 4)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[(margin, margin)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=precision(x.dtype),
    )


def _by_shifts(x: Float[Array, "M H W C"], kernel: Float[Array, "P P 1 C"]) -> Float[Array, "M H W C"]:
    # XLA's CPU backend convolves channel by channel, which takes a hundred times as long as this sum.
    size, (_, height, width, _) = kernel.shape[0], x.shape
    margin = size // 2
    # Materializes the padding. Fused into the sum, it would cost a comparison per element.
    padded = lax.optimization_barrier(jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0))))
    windows = (
        padded[:, row : row + height, column : column + width] * kernel[row, column, 0]
        for row in range(size)
        for column in range(size)
    )
    return sum(windows, start=jnp.zeros_like(x))


def _by_matrix(x: Float[Array, "M H W C"], kernel: Float[Array, "P P 1 C"]) -> Float[Array, "M H W C"]:
    size, (images, height, width, channels) = kernel.shape[0], x.shape
    row, column = np.divmod(np.arange(height * width), width)
    # Offsets of each input position from each output position, counted from the corner of the kernel.
    down, right = (axis[None] - axis[:, None] + size // 2 for axis in (row, column))
    is_inside = (np.minimum(down, right) >= 0) & (np.maximum(down, right) < size)
    taps = kernel.reshape(size**2, channels)[np.where(is_inside, down * size + right, 0)]
    matrix = jnp.where(is_inside[..., None], taps, 0)
    inputs = x.reshape(images, height * width, channels)
    y = jnp.einsum("mqc,pqc->cmp", inputs, matrix, precision=precision(x.dtype), preferred_element_type=jnp.float32)
    return y.transpose(1, 2, 0).reshape(x.shape).astype(x.dtype)


class GlobalResponseNorm(nn.Module):
    """x + scale * x * (|x| / mean |x|) + bias.

    |x| is the norm of each channel over the positions of an image; the mean is over channels.
    """

    eps: float
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "M H W C"]) -> Float[Array, "M H W C"]:
        channels, e = x.shape[-1:], self.execution
        scale = parameter(self, "scale", nn.initializers.zeros, channels, ("mlp",), e)
        bias = parameter(self, "bias", nn.initializers.zeros, channels, ("mlp",), e)
        energy = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True)
        # Avoids the root of 0: its derivative is infinite, so one channel of zeros would make every gradient NaN.
        norm = jnp.where(energy > 0, jnp.sqrt(jnp.where(energy > 0, energy, 1)), 0)
        response = norm / (jnp.mean(norm, axis=-1, keepdims=True) + self.eps)
        gain = 1 + scale.astype(jnp.float32) * response
        return (x.astype(jnp.float32) * gain + bias.astype(jnp.float32)).astype(e.dtype)


class ConvNextBlock(nn.Module):
    """ConvNeXt V2 block whose output is scaled and shifted according to the time embedding (FiLM)."""

    config: UViTConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "M H W C"], time: Float[Array, "M D"]) -> Float[Array, "M H W C"]:
        c, e, channels = self.config, self.execution, x.shape[-1]
        y = DepthwiseConv(c, e, name="depthwise")(x)
        y = RMSNorm(c.norm_eps, e, name="norm")(y)
        y = Linear((c.mlp_ratio * channels,), ("mlp", "embed"), e, name="fc1")(y)
        y = GlobalResponseNorm(c.norm_eps, e, name="response_norm")(nn.gelu(y, approximate=False))
        x = x + Linear((channels,), ("embed", "mlp"), e, name="fc2")(y)
        film = Linear((2 * channels,), (None, "embed"), e, name="film")(nn.silu(time))
        scale, shift = jnp.split(film[:, None, None], 2, axis=-1)
        return x * (1 + scale) + shift


class LatentEncoder(nn.Module):
    """Maps latents and times to one feature vector per image token and to time embeddings."""

    config: UViTConfig
    llm_width: int
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, latents: Float[Array, "M h w C"], times: Float[Array, " M"]) -> EncodedLatents:
        c, e, padding = self.config, self.execution, ((0, 0), (0, 0))
        time = TimeEmbed(c.width, self.llm_width, e, name="time_embed")(times)
        x = Conv(c.width, c.patch_size, c.patch_size, padding, e, name="conv_in")(latents)
        for i in range(c.encoder_depth):
            x = ConvNextBlock(c, e, name=f"blocks_{i}")(x, time)
        return EncodedLatents(x, time)


class DecoderAdaptor(nn.Module):
    """Maps hidden states to the width of the decoder with a norm and a linear layer."""

    config: UViTConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, hidden: Float[Array, "M N D"]) -> Float[Array, "M N C2"]:
        normed = RMSNorm(self.config.norm_eps, self.execution, name="norm")(hidden)
        return Linear((self.config.width,), (None, "embed"), self.execution, name="linear")(normed)


class LatentDecoder(nn.Module):
    """Maps adapted hidden states and the encoder's outputs to velocities of the latents, float32."""

    config: UViTConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: Float[Array, "M N C2"], skip: EncodedLatents) -> Float[Array, "M h w C"]:
        c, e = self.config, self.execution
        x = RMSNorm(c.norm_eps, e, name="norm_in")(x).reshape(skip.features.shape)
        x = jnp.concatenate([x, skip.features], axis=-1)
        for i in range(c.decoder_depth):
            x = ConvNextBlock(c, e, name=f"blocks_{i}")(x, skip.time)
        x = RMSNorm(c.norm_eps, e, name="norm_out")(x)
        y = Linear((c.patch_dim,), (None, "embed"), e, output_dtype=jnp.float32, name="head")(x)
        return unpatchify(y, c.patch_size)


def unpatchify(x: Float[Array, "M h2 w2 C*P*P"], patch_size: int) -> Float[Array, "M h w C"]:
    """Arranges the values of each patch as pixels (pixel shuffle, arXiv 1609.05158). C is the outermost of C*P*P."""
    images, height, width, _ = x.shape
    x = x.reshape(images, height, width, -1, patch_size, patch_size).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(images, height * patch_size, width * patch_size, -1)
