"""SDXL's VAE (arXiv 2307.01952, §2.4), which decodes the latents that JanusFlow generates.

The VAE is frozen. Its activations exceed the range of float16, so it runs in float32 if the model computes in float16.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from janus_jax.config import Execution, VAEConfig
from janus_jax.models.autoencoder import Decoder, Encoder
from janus_jax.models.layers import Linear


class Gaussian(NamedTuple):
    """Normal distribution of latents, float32."""

    mean: Float[Array, "B h w C"]
    log_variance: Float[Array, "B h w C"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "B h w C"]:
        """Returns a sample of the latents."""
        return self.mean + jnp.exp(self.log_variance / 2) * jax.random.normal(key, self.mean.shape)


# Only a faulty encoder returns log variances outside this range. Clipping keeps their exponentials from overflowing.
LOG_VARIANCE_RANGE = (-30.0, 20.0)


class VAE(nn.Module):
    """Encoder and decoder of latents. They are not scaled; `JanusFlow` multiplies them by `config.scaling_factor`."""

    config: VAEConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        c, e = self.config, self.execution
        if e.dtype == "float16":
            e = dataclasses.replace(e, dtype="float32")
        self.encoder = Encoder(2 * c.latent_channels, c, e)
        self.decoder = Decoder(c, e)
        self.quant_conv = Linear((2 * c.latent_channels,), (None, "conv_in"), e)
        self.post_quant_conv = Linear((c.latent_channels,), ("conv_out", None), e)

    def encode(self, pixels: Float[Array, "B H W 3"]) -> Gaussian:
        """Returns the distribution of the latents of images with pixels in [-1, 1]."""
        moments = self.quant_conv(self.encoder(pixels)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Gaussian(mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE))

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Returns the pixels of images from their latents: about [-1, 1], not clipped."""
        return self.decoder(self.post_quant_conv(latents))

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Encodes images to the means of their latents, and decodes the means."""
        return self.decode(self.encode(pixels).mean)
