"""The VAE that JanusFlow's latents come from: SDXL's (arXiv 2307.01952, §2.4), frozen.

Its activations outgrow float16's range: in a model that computes in float16 it runs in float32.
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
    """A normal distribution of latents, as the encoder gives it, not yet scaled; float32."""

    mean: Float[Array, "B h w C"]
    log_variance: Float[Array, "B h w C"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "B h w C"]:
        """Latents drawn from it."""
        return self.mean + jnp.exp(self.log_variance / 2) * jax.random.normal(key, self.mean.shape)


# Beyond these a variance is a fault of the encoder, and its exponential none that can be computed with.
LOG_VARIANCES = (-30.0, 20.0)


class VAE(nn.Module):
    """Encoder and decoder. The latents that a flow moves in are this VAE's times `config.scaling_factor`."""

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
        """The distribution of an image's latents, pixels in [-1, 1]."""
        moments = self.quant_conv(self.encoder(pixels)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Gaussian(mean, jnp.clip(log_variance, *LOG_VARIANCES))

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Pixels of latents that are not scaled: about [-1, 1], not clipped."""
        return self.decoder(self.post_quant_conv(latents))

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Images through the VAE and back, by the means of their latents."""
        return self.decode(self.encode(pixels).mean)
