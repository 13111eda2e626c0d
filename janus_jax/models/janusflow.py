"""JanusFlow: the transformer of Janus, with a rectified flow over image latents (arXiv 2411.07975, §3).

The model predicts velocities: the derivatives of the latents with respect to time.

Top-level names of the parameter tree: `und_encoder`, `und_adaptor`, `beg_of_und`, `gen_encoder`, `gen_adaptor`,
`gen_decoder_adaptor`, `gen_decoder`, `vae`, `llm`.

Token sequences are those of Janus. Only the begin-of-image position, directly before an image, has another embedding:
a trained one before an input image, and the embedding of the image's time before a target image.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import Execution, JanusFlowConfig
from janus_jax.models.backbone import Backbone, insert_images, to_pixels
from janus_jax.models.layers import Embedding, Linear
from janus_jax.models.uvit import DecoderAdaptor, EncodedLatents, LatentDecoder, LatentEncoder
from janus_jax.models.vae import VAE, Gaussian


class Latents(NamedTuple):
    """Interpolated latents of G target images per sequence.

    Attributes:
      values: t x + (1 - t) noise, where x are the scaled latents of the image.
      times: t of each image, from 0 (noise) to 1 (image).
    """

    values: Float[Array, "B G h w C"]
    times: Float[Array, "B G"]


class FlowStates(NamedTuple):
    """Inputs of the text head and of the velocity decoder.

    Attributes:
      hidden: Hidden states of all positions.
      encoded: Outputs of the generation encoder for the B * G target images; None without target images.
    """

    hidden: Float[Array, "B L D"]
    encoded: EncodedLatents | None


class JanusFlow(Backbone):
    """Transformer over text, input images and latents, with a text head and a velocity decoder."""

    config: JanusFlowConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        super().setup()
        # The heads and adaptors, and the image tokenizer or the networks of latents, are not quantized.
        c, e = self.config, self.execution.unquantized
        self.und_adaptor = Linear((c.llm.width,), ("embed", None), e)
        self.beg_of_und = Embedding(1, c.llm.width, (None, "embed"), e)
        self.gen_encoder = LatentEncoder(c.gen_encoder, c.llm.width, e)
        self.gen_adaptor = Linear((c.llm.width,), ("embed", None), e)
        self.gen_decoder_adaptor = DecoderAdaptor(c.gen_encoder, e)
        self.gen_decoder = LatentDecoder(c.gen_encoder, e)
        self.vae = None if c.vae is None else VAE(c.vae, e)

    def embed_input_images(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """Returns embeddings of input images with pixels in [-1, 1], patches in row-major order (§3.1)."""
        return self.und_adaptor(self.und_encoder(pixels))

    def encode_images(self, pixels: Float[Array, "B H W 3"]) -> Gaussian:
        """Returns the distribution of the scaled latents of images with pixels in [-1, 1].

        Scaled latents are the VAE's latents times `scaling_factor`.
        """
        mean, log_variance = self._vae.encode(pixels)
        scale = self._vae.config.scaling_factor
        return Gaussian(mean * scale, log_variance + 2 * jnp.log(scale))

    def decode_latents(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Returns the pixels of images from their scaled latents: about [-1, 1], not clipped."""
        return self._vae.decode(latents / self._vae.config.scaling_factor)

    def encode(self, latents: Float[Array, "M h w C"], times: Float[Array, " M"]) -> EncodedLatents:
        """Returns the inputs of `embed_encoded` and `velocity` for M images (§3.1, generation encoder)."""
        return self.gen_encoder(latents, times)

    def embed_encoded(self, encoded: EncodedLatents) -> Float[Array, "M 1+N D"]:
        """Returns the embeddings of M images: first the time of the image, then its patches in row-major order."""
        features = encoded.features.reshape(len(encoded.time), -1, encoded.features.shape[-1])
        return jnp.concatenate([encoded.time[:, None], self.gen_adaptor(features)], axis=1)

    def velocity(self, hidden: Float[Array, "M N D"], encoded: EncodedLatents) -> Float[Array, "M h w C"]:
        """Returns velocities of latents from the hidden states of their patches, float32 (§3.1, generation decoder)."""
        return self.gen_decoder(self.gen_decoder_adaptor(hidden), encoded)

    def target_latents(self, batch: Batch) -> Latents:
        """Returns the latents and times of the target images.

        If the batch has no latents, the VAE computes the means of their distribution. If it has no times, they are 1.
        """
        values = batch.gen_latents
        if values is None:
            batch_size, images = batch.gen_images.shape[:2]
            shape = (batch_size, images, *self.config.gen_encoder.latent_shape)
            pixels = to_pixels(batch.gen_images.reshape(-1, *batch.gen_images.shape[2:]))
            values = self.encode_images(pixels).mean.reshape(shape) if images else jnp.zeros(shape)
        return Latents(values, jnp.ones(values.shape[:2]) if batch.gen_times is None else batch.gen_times)

    def embed(self, batch: Batch) -> Float[Array, "B L D"]:
        """Returns the embedding of every position. Runs the VAE if the batch has no latents."""
        return self._embed(batch)[0]

    def states(self, batch: Batch) -> FlowStates:
        """Returns the hidden states of all positions, and the encoder outputs that `velocities` also needs."""
        x, encoded = self._embed(batch)
        hidden, _ = self.llm(x, batch.positions, batch.segment_ids)
        return FlowStates(hidden, encoded)

    def velocities(self, batch: Batch, states: FlowStates) -> Float[Array, "B G h w C"]:
        """Returns the velocities of the target images' latents, float32. Those of padding images are arbitrary."""
        assert states.encoded is not None, "the batch has no target images"
        images = len(states.encoded.time) // batch.shape[0]
        hidden = self.target_hidden_states(batch, states.hidden, images)
        velocities = self.velocity(hidden.reshape(-1, *hidden.shape[2:]), states.encoded)
        return velocities.reshape(*hidden.shape[:2], *velocities.shape[1:])

    def target_hidden_states(self, batch: Batch, hidden: Float[Array, "B L D"], images: int) -> Float[Array, "B G N D"]:
        """Returns the hidden states at the tokens of each target image. Those of padding images are arbitrary."""
        batch_size, tokens = batch.shape[0], self.config.num_gen_tokens
        is_start = batch.gen_token_index[:, None] == tokens * jnp.arange(images)[:, None]
        positions = is_start.argmax(axis=-1)[..., None] + jnp.arange(tokens)
        states = jnp.take_along_axis(hidden, positions.reshape(batch_size, -1, 1), axis=1)
        return states.reshape(batch_size, images, tokens, -1)

    def init_all(self, batch: Batch) -> tuple[Array, Array, Array | None]:
        """Runs every module once, so that `init` creates every parameter."""
        batch = batch._replace(gen_latents=jnp.zeros((1, 1, *self.config.gen_encoder.latent_shape)))
        states = self.states(batch)
        decoded = None if self.vae is None else self.vae(to_pixels(batch.gen_images[:, 0]))
        return self.text_logits(states.hidden), self.velocities(batch, states), decoded

    def _embed(self, batch: Batch) -> tuple[Float[Array, "B L D"], EncodedLatents | None]:
        x = self.embed_text_and_input_images(batch)
        if batch.num_input_images:
            next_image = next_image_index(batch.und_patch_index, self.config.und_encoder.num_patches)
            x = jnp.where((next_image != NO_IMAGE)[..., None], self.beg_of_und(jnp.zeros((), jnp.int32)), x)
        latents = self.target_latents(batch)
        batch_size, images = latents.times.shape
        if not images:
            return x, None
        encoded = self.encode(latents.values.reshape(-1, *latents.values.shape[2:]), latents.times.reshape(-1))
        embeddings = self.embed_encoded(encoded)
        x = insert_images(x, embeddings[:, 1:].reshape(batch_size, -1, x.shape[-1]), batch.gen_token_index)
        times = embeddings[:, 0].reshape(batch_size, images, -1)
        return insert_images(x, times, next_image_index(batch.gen_token_index, self.config.num_gen_tokens)), encoded

    @property
    def _vae(self) -> VAE:
        assert self.vae is not None, "this model was made without a VAE"
        return self.vae


def next_image_index(index: Int[Array, "B L"], tokens_per_image: int) -> Int[Array, "B L"]:
    """Returns, for each position directly before an image, the index of this image; `NO_IMAGE` at other positions.

    Args:
      index: `und_patch_index` or `gen_token_index` of a batch.
    """
    following = jnp.pad(index[:, 1:], ((0, 0), (0, 1)), constant_values=NO_IMAGE)
    is_image_start = (following != NO_IMAGE) & (following % tokens_per_image == 0)
    return jnp.where(is_image_start, following // tokens_per_image, NO_IMAGE)
