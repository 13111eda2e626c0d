"""Image tokenizer: maps pixels to tokens and tokens to pixels.

It is VQ-16 of LlamaGen (arXiv 2406.06525, §2.1; VQGAN, arXiv 2012.09841). Images are channels-last with pixels in
[-1, 1]. Normalization and codebook search use float32, because neighboring codes differ by less than the resolution of
bfloat16.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from janus_jax.config import Execution, VQConfig
from janus_jax.models.autoencoder import Decoder, Encoder
from janus_jax.models.layers import Embedding, Linear


class VQTokenizer(nn.Module):
    """Encoder, codebook and decoder. The tokens of an image are in row-major order."""

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
        """Returns the features before quantization, with `code_dim` channels."""
        return self.quant_conv(self.encoder(pixels))

    def quantize(self, latents: Float[Array, "B h w C"]) -> Int[Array, "B N"]:
        """Returns, for each latent vector, the token of the nearest code. Both are normalized first."""
        return nearest_codes(normalize(latents).reshape(latents.shape[0], -1, latents.shape[-1]), self._codes())

    def encode(self, pixels: Float[Array, "B H W 3"]) -> Int[Array, "B N"]:
        """Returns the image tokens of images with pixels in [-1, 1]."""
        return self.quantize(self.latents(pixels))

    def decode(self, ids: Int[Array, "B N"]) -> Float[Array, "B H W 3"]:
        """Returns the pixels of images from their tokens: about [-1, 1], not clipped."""
        codes = jnp.take(self._codes(), ids, axis=0)
        side = self.config.grid_size
        return self.decode_codes(codes.reshape(-1, side, side, self.config.code_dim))

    def decode_codes(self, codes: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Returns the pixels of images from grids of normalized codes: about [-1, 1], not clipped."""
        return self.decoder(self.post_quant_conv(codes.astype(self.execution.dtype)))

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Encodes and decodes images."""
        return self.decode(self.encode(pixels))

    def _codes(self) -> Float[Array, "V C"]:
        return normalize(self.codebook.embedding)


def normalize(x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """Returns the vectors scaled to length 1, float32."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest_codes(latents: Float[Array, "*B C"], codes: Float[Array, "V C"]) -> Int[Array, "*B"]:
    """Returns the index of the code nearest to each latent vector. All vectors have length 1."""
    similarity = jnp.einsum("...C,VC->...V", latents, codes, precision=lax.Precision.HIGHEST)
    # Of vectors of length 1, the nearest has the largest dot product.
    return jnp.argmax(similarity, axis=-1).astype(jnp.int32)
