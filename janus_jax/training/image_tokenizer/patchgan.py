"""PatchGAN: a convolutional network that classifies each patch of an image as real or not (arXiv 1611.07004, §3.2)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_SLOPE = 0.2


def _around_one(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class BatchNorm(nn.Module):
    """Normalizes by the statistics of the batch, over all devices (arXiv 1502.03167).

    There is no moving average for inference, because the discriminator runs on training batches only.
    """

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        scale = self.param("scale", _around_one, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        mean = jnp.mean(x, axis=(0, 1, 2))
        variance = jnp.mean(jnp.square(x - mean), axis=(0, 1, 2))
        return (x - mean) * lax.rsqrt(variance + self.eps) * scale + bias


class PatchGAN(nn.Module):
    """Computes a logit per patch. Positive logits classify the patch as real.

    Attributes:
      base_channels: Channels of the first convolution. Each further convolution has twice as many, up to eight times
        the first.
      num_downsamplings: Convolutions of stride 2. With 3 a logit depends on 70x70 pixels, with 2 on 34x34.
    """

    base_channels: int = 64
    num_downsamplings: int = 3

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w"]:
        x = nn.leaky_relu(self._conv(self.base_channels, 2, "conv_0")(pixels), _SLOPE)
        for i in range(1, self.num_downsamplings + 1):
            stride = 2 if i < self.num_downsamplings else 1
            channels = self.base_channels * min(2**i, 8)
            # The norm adds the bias.
            x = self._conv(channels, stride, f"conv_{i}", use_bias=False)(x)
            x = nn.leaky_relu(BatchNorm(name=f"norm_{i}")(x), _SLOPE)
        return self._conv(1, 1, "conv_out")(x)[..., 0]

    def _conv(self, channels: int, stride: int, name: str, use_bias: bool = True) -> Callable[[Array], Any]:
        return nn.Conv(
            channels,
            (4, 4),
            stride,
            padding=1,
            use_bias=use_bias,
            kernel_init=nn.initializers.normal(0.02),
            precision=lax.Precision.HIGHEST,
            name=name,
        )
