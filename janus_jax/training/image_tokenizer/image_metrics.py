"""Computes PSNR and SSIM of reconstructions, on pixels in [0, 1]."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(images: UInt8[Array, "B H W 3"], others: UInt8[Array, "B H W 3"]) -> Float[Array, " B"]:
    """Returns the peak signal-to-noise ratio of each pair in dB; 100 for equal images."""
    error = images.astype(jnp.float32) / 255 - others.astype(jnp.float32) / 255
    return -10 * jnp.log10(jnp.maximum(jnp.mean(jnp.square(error), axis=(1, 2, 3)), 1e-10))


def ssim(images: UInt8[Array, "B H W 3"], others: UInt8[Array, "B H W 3"]) -> Float[Array, " B"]:
    """Returns the structural similarity of each pair: the mean over windows and channels (Wang et al., 2004, §III.B).

    A window is a Gaussian of 11x11 pixels with standard deviation 1.5. Windows do not extend beyond the image.
    """
    x, y = images.astype(jnp.float32) / 255, others.astype(jnp.float32) / 255
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    similarity /= (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    return jnp.mean(similarity, axis=(1, 2, 3))


def _blur(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).astype(np.float32)
    channels = x.shape[-1]
    for shape in ((_WINDOW, 1, 1, 1), (1, _WINDOW, 1, 1)):
        kernel = jnp.broadcast_to(weights.reshape(shape), (*shape[:3], channels))
        x = lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
            precision=lax.Precision.HIGHEST,
        )
    return x
