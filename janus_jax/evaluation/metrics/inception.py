"""The features that FID compares: Inception-v3 as its first implementation had it (arXiv 1512.00567; 1706.08500).

The weights are pytorch-fid's `pt_inception-2015-12-05`, TensorFlow's of that date in torchvision's names. That net
differs from torchvision's: its average poolings do not count the padding, and its last block pools by the maximum.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from janus_jax.evaluation.metrics.frechet import SIDE
from janus_jax.evaluation.metrics.weights import take

_EPS = 1e-3
_FILE = "pytorch-fid's pt_inception-2015-12-05"


class Unit(nn.Module):
    """Convolution, batch norm with the statistics of training, ReLU."""

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


def _pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _shrink(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    return nn.max_pool(x, (3, 3), (2, 2))


def _resize(x: Float[Array, "B H W 3"]) -> Float[Array, "B h w 3"]:
    # As torch enlarges: half-pixel centres, and no smoothing where it shrinks.
    scale = jnp.array([SIDE / x.shape[1], SIDE / x.shape[2]])
    shape = (x.shape[0], SIDE, SIDE, 3)
    return jax.image.scale_and_translate(x, shape, (1, 2), scale, jnp.zeros(2), "linear", antialias=False)


class BlockA(nn.Module):
    """Branches of 1x1, 5x5, two 3x3, and a pooling."""

    pool_channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        one = Unit(64, name="branch1x1")(x)
        five = Unit(48, name="branch5x5_1")(x)
        five = Unit(64, (5, 5), padding=(2, 2), name="branch5x5_2")(five)
        three = Unit(64, name="branch3x3dbl_1")(x)
        three = Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(three)
        three = Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_3")(three)
        pooled = Unit(self.pool_channels, name="branch_pool")(_pool(x))
        return jnp.concatenate([one, five, three, pooled], axis=-1)


class BlockB(nn.Module):
    """Halves the grid, from 35 to 17."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        three = Unit(384, (3, 3), 2, name="branch3x3")(x)
        double = Unit(64, name="branch3x3dbl_1")(x)
        double = Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        double = Unit(96, (3, 3), 2, name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, _shrink(x)], axis=-1)


class BlockC(nn.Module):
    """Branches of 1x1, one 7x7 and two 7x7, each taken as 1x7 and 7x1, and a pooling."""

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        c, across, down = self.channels, ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        one = Unit(192, name="branch1x1")(x)
        seven = Unit(c, name="branch7x7_1")(x)
        seven = Unit(c, *across, name="branch7x7_2")(seven)
        seven = Unit(192, *down, name="branch7x7_3")(seven)
        double = Unit(c, name="branch7x7dbl_1")(x)
        double = Unit(c, *down, name="branch7x7dbl_2")(double)
        double = Unit(c, *across, name="branch7x7dbl_3")(double)
        double = Unit(c, *down, name="branch7x7dbl_4")(double)
        double = Unit(192, *across, name="branch7x7dbl_5")(double)
        return jnp.concatenate([one, seven, double, Unit(192, name="branch_pool")(_pool(x))], axis=-1)


class BlockD(nn.Module):
    """Halves the grid, from 17 to 8."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        three = Unit(192, name="branch3x3_1")(x)
        three = Unit(320, (3, 3), 2, name="branch3x3_2")(three)
        seven = Unit(192, name="branch7x7x3_1")(x)
        seven = Unit(192, (1, 7), 1, (0, 3), name="branch7x7x3_2")(seven)
        seven = Unit(192, (7, 1), 1, (3, 0), name="branch7x7x3_3")(seven)
        seven = Unit(192, (3, 3), 2, name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _shrink(x)], axis=-1)


class BlockE(nn.Module):
    """Branches that fork once more; `pools_maximum` in the last."""

    pools_maximum: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        across, down = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        one = Unit(320, name="branch1x1")(x)
        three = Unit(384, name="branch3x3_1")(x)
        fork = [Unit(384, *across, name="branch3x3_2a")(three), Unit(384, *down, name="branch3x3_2b")(three)]
        double = Unit(448, name="branch3x3dbl_1")(x)
        double = Unit(384, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        fork += [Unit(384, *across, name="branch3x3dbl_3a")(double), Unit(384, *down, name="branch3x3dbl_3b")(double)]
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.pools_maximum else _pool(x)
        return jnp.concatenate([one, *fork, Unit(192, name="branch_pool")(pooled)], axis=-1)


class Inception(nn.Module):
    """The 2048 means over the last grid."""

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B 2048"]:
        """The features of images of any size, pixels in [-1, 1]."""
        x = pixels if pixels.shape[1:3] == (SIDE, SIDE) else _resize(pixels)
        x = Unit(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
        x = Unit(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = _shrink(Unit(64, (3, 3), padding=(1, 1), name="Conv2d_2b_3x3")(x))
        x = Unit(80, name="Conv2d_3b_1x1")(x)
        x = _shrink(Unit(192, (3, 3), name="Conv2d_4a_3x3")(x))
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
    """The parameters of `Inception` from the file's tensors, batch norms folded into a scale and a bias.

    Raises:
      JanusError: a tensor is missing or misshapen.
    """
    pixels = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), pixels)["params"]

    def fill(node: Mapping[str, Any], name: str) -> dict[str, Any]:
        if "kernel" not in node:
            return {key: fill(child, f"{name}{key}.") for key, child in node.items()}
        height, width, inputs, outputs = node["kernel"].shape
        kernel = take(tensors, f"{name}conv.weight", (outputs, inputs, height, width), _FILE)
        weight, bias, mean, variance = (
            take(tensors, f"{name}bn.{part}", (outputs,), _FILE)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(variance + np.float32(_EPS))
        return {"kernel": kernel.transpose(2, 3, 1, 0), "scale": scale, "bias": bias - mean * scale}

    return fill(shapes, "")


def tensor_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that `inception_params` reads."""
    pixels = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), pixels)["params"]
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        *modules, kind = (entry.key for entry in path)
        name = ".".join(modules)
        if kind == "kernel":
            yield f"{name}.conv.weight", (leaf.shape[3], leaf.shape[2], *leaf.shape[:2])
            for part in ("weight", "bias", "running_mean", "running_var"):
                yield f"{name}.bn.{part}", (leaf.shape[3],)
