"""JanusFlow: the transformer of Janus, through which latents of an image move along a flow (arXiv 2411.07975, §3).

The parameter tree: `und_encoder`, `und_adaptor`, `beg_of_und`, `gen_encoder`, `gen_adaptor`, `gen_decoder_adaptor`,
`gen_decoder`, `vae`, `llm`.

Rows are those of Janus. What differs is the begin-of-image place: before an image to understand it holds a learned
embedding, before an image to generate that of the image's time.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import Execution, JanusFlowConfig
from janus_jax.models.backbone import Backbone, fill, to_pixels
from janus_jax.models.layers import Embedding, Linear
from janus_jax.models.uvit import DecoderAdaptor, Encoded, LatentDecoder, LatentEncoder
from janus_jax.models.vae import VAE, Gaussian


class Latents(NamedTuple):
    """Latents of G images a row on their way from noise to the images.

    Attributes:
      values: t x + (1 - t) noise, with x the VAE's latents, scaled.
      times: t, from 0 (noise) to 1 (the image).
    """

    values: Float[Array, "B G h w C"]
    times: Float[Array, "B G"]


class States(NamedTuple):
    """What heads read.

    Attributes:
      hidden: of every place.
      encoded: the batch's images to generate, rows laid end to end; None where it has none.
    """

    hidden: Float[Array, "B L D"]
    encoded: Encoded | None


class JanusFlow(Backbone):
    """Embeds rows of places, runs the transformer over them, and reads text logits or velocities of latents."""

    config: JanusFlowConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        super().setup()
        c, e = self.config, self.execution
        self.und_adaptor = Linear((c.llm.width,), ("embed", None), e)
        self.beg_of_und = Embedding(1, c.llm.width, (None, "embed"), e)
        self.gen_encoder = LatentEncoder(c.gen_encoder, c.llm.width, e)
        self.gen_adaptor = Linear((c.llm.width,), ("embed", None), e)
        self.gen_decoder_adaptor = DecoderAdaptor(c.gen_encoder, e)
        self.gen_decoder = LatentDecoder(c.gen_encoder, e)
        self.vae = None if c.vae is None else VAE(c.vae, e)

    def understand(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """Embeddings of images to understand, pixels in [-1, 1], patches row by row (§3.1)."""
        return self.und_adaptor(self.und_encoder(pixels))

    def encode_images(self, pixels: Float[Array, "B H W 3"]) -> Gaussian:
        """The distribution of images' latents, scaled, pixels in [-1, 1]."""
        mean, log_variance = self._vae.encode(pixels)
        scale = self._vae.config.scaling_factor
        return Gaussian(mean * scale, log_variance + 2 * jnp.log(scale))

    def decode_latents(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Pixels of scaled latents: about [-1, 1], not clipped."""
        return self._vae.decode(latents / self._vae.config.scaling_factor)

    def encode(self, latents: Float[Array, "M h w C"], times: Float[Array, " M"]) -> Encoded:
        """Latents and their times as `embed_encoded` and `velocity` want them (§3.1, generation encoder)."""
        return self.gen_encoder(latents, times)

    def embed_encoded(self, encoded: Encoded) -> Float[Array, "M 1+N D"]:
        """Embeddings of each image's places: that of its time, then its patches row by row."""
        features = encoded.features.reshape(len(encoded.time), -1, encoded.features.shape[-1])
        return jnp.concatenate([encoded.time[:, None], self.gen_adaptor(features)], axis=1)

    def velocity(self, hidden: Float[Array, "M N D"], encoded: Encoded) -> Float[Array, "M h w C"]:
        """Velocities of latents from the hidden states of their patches, float32 (§3.1, generation decoder)."""
        return self.gen_decoder(self.gen_decoder_adaptor(hidden), encoded)

    def generation_latents(self, batch: Batch) -> Latents:
        """Latents of the batch's images to generate: those it came with, or the VAE's means; at time 1."""
        values = self._known_or_encoded(batch)
        times = jnp.ones(values.shape[:2]) if batch.gen_times is None else batch.gen_times
        return Latents(values, times)

    def _known_or_encoded(self, batch: Batch) -> Float[Array, "B G h w C"]:
        if batch.gen_latents is not None:
            return batch.gen_latents
        g, (rows, images) = self.config.gen_encoder, batch.gen_images.shape[:2]
        shape = (rows, images, *g.latent_shape)
        if not images:
            return jnp.zeros(shape)
        pixels = to_pixels(batch.gen_images.reshape(-1, *batch.gen_images.shape[2:]))
        return self.encode_images(pixels).mean.reshape(shape)

    def embed(self, batch: Batch) -> Float[Array, "B L D"]:
        """Fills each place of a batch with its embedding; runs the VAE where latents are not yet known."""
        x, _ = self._embed(batch)
        return x

    def states(self, batch: Batch) -> States:
        """Hidden states of every place (as `__call__`), and what `velocities` needs beside them."""
        x, encoded = self._embed(batch)
        hidden, _ = self.llm(x, batch.positions, batch.segment_ids)
        return States(hidden, encoded)

    def velocities(self, batch: Batch, states: States) -> Float[Array, "B G h w C"]:
        """Velocities of a batch's latents, each image at its own time, float32; of padding images, anything."""
        assert states.encoded is not None, "the batch has no images to generate"
        images = len(states.encoded.time) // batch.shape[0]
        hidden = self.of_images(batch, states.hidden, images)
        velocities = self.velocity(hidden.reshape(-1, *hidden.shape[2:]), states.encoded)
        return velocities.reshape(*hidden.shape[:2], *velocities.shape[1:])

    def of_images(self, batch: Batch, hidden: Float[Array, "B L D"], images: int) -> Float[Array, "B G N D"]:
        """States at the places of each of a row's images to generate; of padding images, anything."""
        rows, tokens = batch.shape[0], self.config.num_gen_tokens
        firsts = batch.gen_token_index[:, None] == tokens * jnp.arange(images)[:, None]
        places = firsts.argmax(axis=-1)[..., None] + jnp.arange(tokens)
        states = jnp.take_along_axis(hidden, places.reshape(rows, -1, 1), axis=1)
        return states.reshape(rows, images, tokens, -1)

    def touch(self, batch: Batch) -> tuple[Array, Array, Array | None]:
        """Runs every part once, which is what `init` needs to make every parameter."""
        g = self.config.gen_encoder
        latents = jnp.zeros((1, 1, *g.latent_shape))
        batch = batch._replace(gen_latents=latents)
        states = self.states(batch)
        through = None if self.vae is None else self.vae(to_pixels(batch.gen_images[:, 0]))
        return self.text_logits(states.hidden), self.velocities(batch, states), through

    def _embed(self, batch: Batch) -> tuple[Float[Array, "B L D"], Encoded | None]:
        x = self.embed_read(batch)
        if batch.und_images.shape[1]:
            is_begin = images_that_follow(batch.und_patch_index, self.config.und_encoder.num_patches) != NO_IMAGE
            x = jnp.where(is_begin[..., None], self.beg_of_und(jnp.zeros((), jnp.int32)), x)
        latents = self.generation_latents(batch)
        rows, images = latents.times.shape
        if not images:
            return x, None
        encoded = self.encode(latents.values.reshape(-1, *latents.values.shape[2:]), latents.times.reshape(-1))
        embeddings = self.embed_encoded(encoded)
        x = fill(x, embeddings[:, 1:].reshape(rows, -1, x.shape[-1]), batch.gen_token_index)
        times = embeddings[:, 0].reshape(rows, images, -1)
        return fill(x, times, images_that_follow(batch.gen_token_index, self.config.num_gen_tokens)), encoded

    @property
    def _vae(self) -> VAE:
        assert self.vae is not None, "this model was made without a VAE"
        return self.vae


def images_that_follow(places: Int[Array, "B L"], tokens_per_image: int) -> Int[Array, "B L"]:
    """At each place the number of the image whose first patch comes next, which is its begin-of-image; or `NO_IMAGE`.

    Args:
      places: `und_patch_index` or `gen_token_index` of a batch.
    """
    following = jnp.pad(places[:, 1:], ((0, 0), (0, 1)), constant_values=NO_IMAGE)
    is_first = (following != NO_IMAGE) & (following % tokens_per_image == 0)
    return jnp.where(is_first, following // tokens_per_image, NO_IMAGE)
