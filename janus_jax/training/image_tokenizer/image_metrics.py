"""Computes PSNR and SSIM of reconstructions, on pixels in [0, 1]."""

import dm_pix as pix
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

_MAX_PSNR = 100.0


def psnr(images: UInt8[Array, "B H W 3"], others: UInt8[Array, "B H W 3"]) -> Float[Array, " B"]:
    """Returns the peak signal-to-noise ratio of each pair in dB; 100 for equal images, so that means are finite."""
    return jnp.minimum(pix.psnr(_scale(images), _scale(others)), _MAX_PSNR)


def ssim(images: UInt8[Array, "B H W 3"], others: UInt8[Array, "B H W 3"]) -> Float[Array, " B"]:
    """Returns the structural similarity of each pair: the mean over windows and channels (Wang et al., 2004, §III.B).

    A window is a Gaussian of 11x11 pixels with standard deviation 1.5. Windows do not extend beyond the image.
    """
    return pix.ssim(_scale(images), _scale(others))


def _scale(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
    return jnp.asarray(images, jnp.float32) / 255
