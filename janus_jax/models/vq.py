"""The image tokenizer: pixels to ids and back (LlamaGen's VQ-16, arXiv 2406.06525, §2.1; VQGAN, arXiv 2012.09841).

Images are channels-last with pixels in [-1, 1]. Normalisation and the codebook search are float32 whatever the
computation's dtype is: neighbouring codes differ by less than bfloat16 resolves.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from janus_jax.config import Execution, VQConfig
from janus_jax.models.autoencoder import Decoder, Encoder
from janus_jax.models.layers import Embedding, Linear


class VQTokenizer(nn.Module):
    """Encoder, codebook and decoder. Ids run over an image's grid row by row."""

    config: VQConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        c, e = self.config, self.execution
        self.encoder = Encoder(c.z_channels, c, e)
        self.decoder = Decoder(c, e)
        self.quant_conv = Linear((c.code_dim,), (None, "conv_in"), e)
        self.post_quant_conv = Linear((c.z_channels,), ("conv_out", None), e)
        self.codebook = Embedding(c.codebook_size, c.code_dim, (None, None), e)

    def latents(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Features before quantisation, `code_dim` a place, pixels in [-1, 1]."""
        return self.quant_conv(self.encoder(pixels))

    def quantize(self, latents: Float[Array, "B h w C"]) -> Int[Array, "B N"]:
        """Ids of the codes nearest to the latents, both on the unit sphere."""
        return nearest(normalize(latents).reshape(latents.shape[0], -1, latents.shape[-1]), self._codes())

    def encode(self, pixels: Float[Array, "B H W 3"]) -> Int[Array, "B N"]:
        """Ids of images with pixels in [-1, 1]."""
        return self.quantize(self.latents(pixels))

    def decode(self, ids: Int[Array, "B N"]) -> Float[Array, "B H W 3"]:
        """Pixels of a grid of ids: about [-1, 1], not clipped."""
        codes = jnp.take(self._codes(), ids, axis=0)
        side = self.config.grid_size
        return self.decode_codes(codes.reshape(-1, side, side, self.config.code_dim))

    def decode_codes(self, codes: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Pixels of a grid of codes on the unit sphere: about [-1, 1], not clipped."""
        return self.decoder(self.post_quant_conv(codes.astype(self.execution.dtype)))

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Images through the tokenizer and back."""
        return self.decode(self.encode(pixels))

    def _codes(self) -> Float[Array, "V C"]:
        return normalize(self.codebook.embedding)


def normalize(x: Float[Array, "*rows C"]) -> Float[Array, "*rows C"]:
    """Rows of length 1, float32."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest(latents: Float[Array, "*rows C"], codes: Float[Array, "V C"]) -> Int[Array, "*rows"]:
    """Ids of the codes nearest to the latents, both on the unit sphere."""
    similarity = jnp.einsum("...C,VC->...V", latents, codes, precision=lax.Precision.HIGHEST)
    # On the unit sphere the nearest code is the one with the largest dot product.
    return jnp.argmax(similarity, axis=-1).astype(jnp.int32)
