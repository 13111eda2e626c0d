"""Inception-v3 features for FID, as in the first implementation of FID (arXiv 1512.00567; 1706.08500).

The weights are pytorch-fid's `pt_inception-2015-12-05`: TensorFlow's weights of that date under torchvision's names.
The network differs from torchvision's: average pooling does not count padding, and the last block uses max pooling.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float

from janus_jax.evaluation.metrics.frechet import INPUT_SIZE
from janus_jax.files import checked_tensor

_EPS = 1e-3
_SOURCE = "pytorch-fid's pt_inception-2015-12-05"
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


class ConvUnit(nn.Module):
    """Convolution, batch norm (folded into a scale and a bias) and ReLU."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        shape = (*self.kernel, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        scale = self.param("scale", nn.initializers.ones, (self.channels,))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        y = lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(side, side) for side in self.padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return nn.relu(y * scale + bias)


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
    """Branches of 1x1, 5x5, two 3x3 convolutions and pooling."""

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
    """Reduces the grid from 35 to 17."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        three = ConvUnit(384, (3, 3), 2, name="branch3x3")(x)
        double = ConvUnit(64, name="branch3x3dbl_1")(x)
        double = ConvUnit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        double = ConvUnit(96, (3, 3), 2, name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, _max_pool(x)], axis=-1)


class BlockC(nn.Module):
    """Branches of 1x1, one 7x7, two 7x7 and pooling. Each 7x7 is factored into 1x7 and 7x1."""

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
    """Reduces the grid from 17 to 8."""

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
    """Branches of 1x1, 3x3, two 3x3 and pooling. The last 3x3 of a branch is split into 1x3 and 3x1.

    Attributes:
      max_pooling: Whether the pooling branch uses the maximum; only the last block does.
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
    """Inception-v3 up to its global average pooling."""

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B 2048"]:
        """Computes features of images.

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


def inception_params(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Converts the tensors of the weight file to parameters of `Inception`, with folded batch norms.

    Raises:
      JanusError: A tensor is missing or has another shape.
    """
    params: dict[tuple[str, ...], np.ndarray] = {}
    for path, (height, width, inputs, outputs) in _kernels():
        name = ".".join(path)
        kernel = checked_tensor(tensors, f"{name}.conv.weight", (outputs, inputs, height, width), _SOURCE)
        weight, bias, mean, variance = (
            checked_tensor(tensors, f"{name}.bn.{part}", (outputs,), _SOURCE) for part in _NORM_TENSORS
        )
        scale = weight / np.sqrt(variance + np.float32(_EPS))
        params[*path, "kernel"] = kernel.transpose(2, 3, 1, 0)
        params[*path, "scale"], params[*path, "bias"] = scale, bias - mean * scale
    return unflatten_dict(params)


def tensor_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the name and shape of every tensor that `inception_params` reads."""
    for path, (height, width, inputs, outputs) in _kernels():
        name = ".".join(path)
        yield f"{name}.conv.weight", (outputs, inputs, height, width)
        for part in _NORM_TENSORS:
            yield f"{name}.bn.{part}", (outputs,)


def _kernels() -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Yields the path and kernel shape of every convolution."""
    pixels = jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), pixels)["params"]
    for path, leaf in flatten_dict(shapes).items():
        if path[-1] == "kernel":
            yield path[:-1], leaf.shape
