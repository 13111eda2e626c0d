"""LPIPS: perceptual distance of two images by the features of a VGG-16 (arXiv 1801.03924, §3, version 0.1).

The weights are two PyTorch files: torchvision's `vgg16` state dict, and `vgg.pth` of the lpips package with one weight
per channel of each of five layers.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from janus_jax.config import Execution
from janus_jax.evaluation.metrics.torch_params import checked_tensor
from janus_jax.models.layers import Conv

# Channels of the convolutions between two poolings, and their indices in torchvision's `features`.
_STAGES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (64, (0, 2)),
    (128, (5, 7)),
    (256, (10, 12, 14)),
    (512, (17, 19, 21)),
    (512, (24, 26, 28)),
)
# Maps [-1, 1] to the input range of VGG.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class VGGFeatures(nn.Module):
    """VGG-16 without its classifier. Returns the activations relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""

    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w C"]]:
        features = []
        for stage, (channels, numbers) in enumerate(_STAGES):
            if stage:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for number in numbers:
                x = nn.relu(Conv(channels, 3, execution=self.execution, name=f"conv_{number}")(x))
            features.append(x)
        return features


class LPIPS(nn.Module):
    """Mean perceptual distance of pairs of images."""

    execution: Execution = Execution()

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], others: Float[Array, "B H W 3"]) -> Float[Array, ""]:
        """Returns the distance. Pixels are in [-1, 1], and image sides have at least 16 pixels."""
        vgg = VGGFeatures(self.execution, name="vgg")
        both = jnp.stack([images, others], axis=1).reshape(-1, *images.shape[1:])
        features = vgg((both - jnp.array(_SHIFT)) / jnp.array(_SCALE))
        total = jnp.zeros((), jnp.float32)
        for stage, (channels, _) in enumerate(_STAGES):
            weight = self.param(f"lin_{stage}", nn.initializers.ones, (channels,))
            x = _unit(features[stage].astype(jnp.float32))
            pairs = x.reshape(-1, 2, *x.shape[1:])
            difference = jnp.square(pairs[:, 0] - pairs[:, 1])
            total += jnp.mean(jnp.einsum("bhwc,c->bhw", difference, weight, precision=lax.Precision.HIGHEST))
        return total


def _unit(x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    # The square root has no finite gradient at zero, and features that are all zero are frequent after a ReLU.
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(squares > 0, squares, 1.0)) * (squares > 0)
    return x / (length + 1e-10)


def lpips_params(vgg: Mapping[str, np.ndarray], lins: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the parameters of `LPIPS`, converted from the tensors of the two files.

    Args:
      vgg: Tensors of torchvision, such as `features.0.weight`; the classifier is not used.
      lins: Tensors of the lpips package, `lin0.model.1.weight` to `lin4.model.1.weight`.

    Raises:
      JanusError: A tensor is missing or has another shape.
    """
    params: dict[str, Any] = {"vgg": {}}
    inputs = 3
    for stage, (channels, numbers) in enumerate(_STAGES):
        for number in numbers:
            kernel = checked_tensor(vgg, f"features.{number}.weight", (channels, inputs, 3, 3), "torchvision's vgg16")
            bias = checked_tensor(vgg, f"features.{number}.bias", (channels,), "torchvision's vgg16")
            params["vgg"][f"conv_{number}"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
            inputs = channels
        lin = checked_tensor(lins, f"lin{stage}.model.1.weight", (1, channels, 1, 1), "the lpips package's vgg.pth")
        params[f"lin_{stage}"] = lin.reshape(channels)
    return params
