"""Janus: one causal transformer between two visual encoders, one for understanding and one for generation.

Janus (arXiv 2410.13848, §3.1, figure 2). The parameter tree carries the paper's names: `und_encoder`, `und_adaptor`,
`gen_encoder`, `gen_embed`, `gen_adaptor`, `gen_head`, `llm`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from janus_jax.batch import Batch
from janus_jax.config import Execution, JanusConfig
from janus_jax.models.backbone import Backbone, fill, to_pixels
from janus_jax.models.layers import Axes, Embedding, Linear
from janus_jax.models.vq import VQTokenizer

IMAGE_HEAD = ("gen_head",)
"""Path of all parameters that `Janus.image_logits` reads."""


class TwoLayerMLP(nn.Module):
    """fc2(gelu(fc1(x))), the GELU exact: both adaptors and the image head.

    Attributes:
      hidden, outputs: widths after the first and the second layer.
      axes: logical names of the input, of the layer between, and of the output.
      output_dtype: of the result, where it is not to be the computation's.
    """

    hidden: int
    outputs: int
    axes: Axes
    execution: Execution
    output_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*rows C"]) -> Float[Array, "*rows D"]:
        inputs, hidden, outputs = self.axes
        x = Linear((self.hidden,), (hidden, inputs), self.execution, name="fc1")(x)
        x = nn.gelu(x, approximate=False)
        fc2 = Linear((self.outputs,), (outputs, hidden), self.execution, output_dtype=self.output_dtype, name="fc2")
        return fc2(x)


class Janus(Backbone):
    """Embeds rows of places, runs the transformer over them, and reads text or image logits."""

    config: JanusConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        super().setup()
        c, e = self.config, self.execution
        width = c.llm.width
        self.und_adaptor = TwoLayerMLP(width, width, ("embed", "mlp", "embed"), e)
        self.gen_encoder = VQTokenizer(c.gen_encoder, e)
        self.gen_embed = Embedding(c.gen_encoder.codebook_size, c.gen_encoder.code_dim, ("vocab", None), e)
        self.gen_adaptor = TwoLayerMLP(width, width, (None, "mlp", "embed"), e)
        self.gen_head = TwoLayerMLP(
            c.gen_head_width, c.gen_encoder.codebook_size, ("embed", "mlp", "vocab"), e, output_dtype=jnp.float32
        )

    def understand(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """Embeddings of images to understand, pixels in [-1, 1], patches row by row (§3.1, understanding adaptor)."""
        if self.config.understands_by == "gen_encoder":
            return self.embed_image_ids(self.tokenize(pixels))
        return self.und_adaptor(self.und_encoder(pixels))

    def tokenize(self, pixels: Float[Array, "B H W 3"]) -> Int[Array, "B N"]:
        """Ids of images to generate, pixels in [-1, 1]."""
        return self.gen_encoder.encode(pixels)

    def detokenize(self, ids: Int[Array, "B N"]) -> Float[Array, "B H W 3"]:
        """Pixels of generated ids: about [-1, 1], not clipped."""
        return self.gen_encoder.decode(ids)

    def embed_image_ids(self, ids: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
        """Embeddings of image ids (§3.1, generation adaptor)."""
        return self.gen_adaptor(self.gen_embed(ids))

    def embed(self, batch: Batch) -> Float[Array, "B L D"]:
        """Fills each place of a batch with its embedding; runs the tokenizer where image ids are not yet known."""
        x = self.embed_read(batch)
        image_ids = self.generation_ids(batch)
        if image_ids.shape[1]:
            x = fill(x, self.embed_image_ids(image_ids.reshape(len(image_ids), -1)), batch.gen_token_index)
        return x

    def generation_ids(self, batch: Batch) -> Int[Array, "B G N"]:
        """Ids of the batch's images to generate: those it came with, or the tokenizer's."""
        if batch.gen_ids is not None:
            return batch.gen_ids
        rows, images = batch.gen_images.shape[:2]
        if not images:
            return jnp.zeros((rows, 0, self.config.gen_encoder.num_tokens), jnp.int32)
        pixels = to_pixels(batch.gen_images.reshape(-1, *batch.gen_images.shape[2:]))
        return self.tokenize(pixels).reshape(rows, images, -1)

    def image_logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Logits over the image codebook, float32 (§3.1, image head)."""
        return self.gen_head(hidden)

    def touch(self, batch: Batch) -> tuple[Array, Array, Array]:
        """Runs every part once, which is what `init` needs to make every parameter."""
        hidden = self(batch)
        if self.config.understands_by != "und_encoder":
            # Every model has the same parameters, whichever way its images go.
            self.und_adaptor(self.und_encoder(to_pixels(batch.und_images[:, 0])))
        return self.text_logits(hidden), self.image_logits(hidden), self.detokenize(self._any_ids(batch))

    def _any_ids(self, batch: Batch) -> Int[Array, "B N"]:
        return jnp.zeros((batch.shape[0], self.config.gen_encoder.num_tokens), jnp.int32)
