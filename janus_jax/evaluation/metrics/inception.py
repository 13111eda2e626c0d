"""Inception-v3 (arXiv 1512.00567), which computes the image features for FID.

The weights come from pytorch-fid's file `pt_inception-2015-12-05`, which contains TensorFlow's weights of that date.
The parameters have the names and orientations of that file. Unlike torchvision's network, average pooling does not
count padding, and the last block uses max pooling.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from janus_jax.evaluation.metrics.frechet import INPUT_SIZE
from janus_jax.evaluation.metrics.torch_params import load_params, param_shapes

_EPS = 1e-3


class ConvUnit(nn.Module):
    """Convolution, batch norm with stored statistics, and ReLU."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        # Parameters are always loaded from a file. The initializer only declares their shapes.
        zeros = nn.initializers.zeros
        kernel = self.param("conv.weight", zeros, (self.channels, x.shape[-1], *self.kernel))
        weight, bias, mean, variance = (
            self.param(f"bn.{name}", zeros, (self.channels,))
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        y = lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(side, side) for side in self.padding],
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        scale = weight / jnp.sqrt(variance + _EPS)
        return nn.relu(y * scale + (bias - mean * scale))


def _avg_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    return nn.max_pool(x, (3, 3), (2, 2))


def _resize(x: Float[Array, "B H W 3"]) -> Float[Array, "B h w 3"]:
    # As in torch: half-pixel centers, no antialiasing.
    scale = jnp.array([INPUT_SIZE / x.shape[1], INPUT_SIZE / x.shape[2]])
    shape = (x.shape[0], INPUT_SIZE, INPUT_SIZE, 3)
    return jax.image.scale_and_translate(x, shape, (1, 2), scale, jnp.zeros(2), "linear", antialias=False)


class BlockA(nn.Module):
    """Concatenates a 1x1, a 5x5 and two successive 3x3 convolutions, and a pooling branch."""

    pool_channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        one = ConvUnit(64, name="branch1x1")(x)
        five = ConvUnit(48, name="branch5x5_1")(x)
        five = ConvUnit(64, (5, 5), padding=(2, 2), name="branch5x5_2")(five)
        three = ConvUnit(64, name="branch3x3dbl_1")(x)
        three = ConvUnit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(three)
        three = ConvUnit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_3")(three)
        pooled = ConvUnit(self.pool_channels, name="branch_pool")(_avg_pool(x))
        return jnp.concatenate([one, five, three, pooled], axis=-1)


class BlockB(nn.Module):
    """Reduces width and height from 35 to 17."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        three = ConvUnit(384, (3, 3), 2, name="branch3x3")(x)
        double = ConvUnit(64, name="branch3x3dbl_1")(x)
        double = ConvUnit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        double = ConvUnit(96, (3, 3), 2, name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, _max_pool(x)], axis=-1)


class BlockC(nn.Module):
    """Concatenates a 1x1, a 7x7 and two successive 7x7 convolutions, and a pooling branch.

    Each 7x7 convolution is factored into 1x7 and 7x1.
    """

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        c, across, down = self.channels, ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        one = ConvUnit(192, name="branch1x1")(x)
        seven = ConvUnit(c, name="branch7x7_1")(x)
        seven = ConvUnit(c, *across, name="branch7x7_2")(seven)
        seven = ConvUnit(192, *down, name="branch7x7_3")(seven)
        double = ConvUnit(c, name="branch7x7dbl_1")(x)
        double = ConvUnit(c, *down, name="branch7x7dbl_2")(double)
        double = ConvUnit(c, *across, name="branch7x7dbl_3")(double)
        double = ConvUnit(c, *down, name="branch7x7dbl_4")(double)
        double = ConvUnit(192, *across, name="branch7x7dbl_5")(double)
        return jnp.concatenate([one, seven, double, ConvUnit(192, name="branch_pool")(_avg_pool(x))], axis=-1)


class BlockD(nn.Module):
    """Reduces width and height from 17 to 8."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        three = ConvUnit(192, name="branch3x3_1")(x)
        three = ConvUnit(320, (3, 3), 2, name="branch3x3_2")(three)
        seven = ConvUnit(192, name="branch7x7x3_1")(x)
        seven = ConvUnit(192, (1, 7), 1, (0, 3), name="branch7x7x3_2")(seven)
        seven = ConvUnit(192, (7, 1), 1, (3, 0), name="branch7x7x3_3")(seven)
        seven = ConvUnit(192, (3, 3), 2, name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _max_pool(x)], axis=-1)


class BlockE(nn.Module):
    """Concatenates a 1x1, a 3x3 and two successive 3x3 convolutions, and a pooling branch.

    The last 3x3 convolution of a branch is replaced by a 1x3 and a 3x1 convolution of the same input.

    Attributes:
      max_pooling: Whether the pooling branch takes the maximum, as in the last block, or the average.
    """

    max_pooling: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        across, down = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        one = ConvUnit(320, name="branch1x1")(x)
        three = ConvUnit(384, name="branch3x3_1")(x)
        split = [ConvUnit(384, *across, name="branch3x3_2a")(three), ConvUnit(384, *down, name="branch3x3_2b")(three)]
        double = ConvUnit(448, name="branch3x3dbl_1")(x)
        double = ConvUnit(384, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        split += [
            ConvUnit(384, *across, name="branch3x3dbl_3a")(double),
            ConvUnit(384, *down, name="branch3x3dbl_3b")(double),
        ]
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.max_pooling else _avg_pool(x)
        return jnp.concatenate([one, *split, ConvUnit(192, name="branch_pool")(pooled)], axis=-1)


class Inception(nn.Module):
    """Inception-v3 without its classifier."""

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B 2048"]:
        """Returns the features of images: the output of the global average pooling.

        Args:
          pixels: Images of any size, with values in [-1, 1].
        """
        x = pixels if pixels.shape[1:3] == (INPUT_SIZE, INPUT_SIZE) else _resize(pixels)
        x = ConvUnit(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
        x = ConvUnit(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = _max_pool(ConvUnit(64, (3, 3), padding=(1, 1), name="Conv2d_2b_3x3")(x))
        x = ConvUnit(80, name="Conv2d_3b_1x1")(x)
        x = _max_pool(ConvUnit(192, (3, 3), name="Conv2d_4a_3x3")(x))
        for name, channels in (("b", 32), ("c", 64), ("d", 64)):
            x = BlockA(channels, name=f"Mixed_5{name}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, channels in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = BlockC(channels, name=f"Mixed_6{name}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(False, name="Mixed_7b")(x)
        x = BlockE(True, name="Mixed_7c")(x)
        return jnp.mean(x, axis=(1, 2))


def inception_shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
    """Returns the shapes of Inception's parameters by path."""
    return param_shapes(Inception(), jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), jnp.float32))


def inception_params(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the parameters of `Inception` from the tensors of pytorch-fid's file.

    Raises:
      JanusError: A tensor is missing or has another shape.
    """
    return load_params(tensors, inception_shapes(), "pytorch-fid's pt_inception-2015-12-05")
