"""SDXL's VAE (arXiv 2307.01952, §2.4). JanusFlow generates its latents.

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
        """Samples latents."""
        return self.mean + jnp.exp(self.log_variance / 2) * jax.random.normal(key, self.mean.shape)


# Log variances outside this range come from a faulty encoder, and their exponentials overflow.
LOG_VARIANCE_RANGE = (-30.0, 20.0)


class VAE(nn.Module):
    """Encoder and decoder. The latents of the flow are those of the VAE times `config.scaling_factor`."""

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
        """Returns the distribution of an image's latents, not scaled. Pixels are in [-1, 1]."""
        moments = self.quant_conv(self.encoder(pixels)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Gaussian(mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE))

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Returns the pixels of latents that are not scaled: about [-1, 1], not clipped."""
        return self.decoder(self.post_quant_conv(latents))

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Encodes images to the means of their latents and decodes these."""
        return self.decode(self.encode(pixels).mean)
