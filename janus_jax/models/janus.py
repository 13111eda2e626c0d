"""Janus: a causal transformer with separate visual encoders for understanding and for generation.

Janus (arXiv 2410.13848, §3.1, figure 2). Top-level names of the parameter tree: `und_encoder`, `und_adaptor`,
`gen_encoder`, `gen_embed`, `gen_adaptor`, `gen_head`, `llm`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from janus_jax.batch import Batch
from janus_jax.config import Execution, JanusConfig
from janus_jax.models.backbone import Backbone, insert_images, to_pixels
from janus_jax.models.layers import Axes, Embedding, Linear
from janus_jax.models.vq import VQTokenizer

IMAGE_HEAD = ("gen_head",)
"""Path of the subtree with all parameters that `Janus.image_logits` reads."""


class TwoLayerMLP(nn.Module):
    """fc2(gelu(fc1(x))) with the exact GELU, used for both adaptors and the image head.

    Attributes:
      hidden, outputs: Widths after the first and the second layer.
      axes: Logical names of the input, hidden and output axes.
      output_dtype: dtype of the result; None stands for `execution.dtype`.
    """

    hidden: int
    outputs: int
    axes: Axes
    execution: Execution
    output_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B D"]:
        inputs, hidden, outputs = self.axes
        x = Linear((self.hidden,), (hidden, inputs), self.execution, name="fc1")(x)
        x = nn.gelu(x, approximate=False)
        fc2 = Linear((self.outputs,), (outputs, hidden), self.execution, output_dtype=self.output_dtype, name="fc2")
        return fc2(x)


class Janus(Backbone):
    """Transformer over text, input images and image tokens, with a text head and an image head."""

    config: JanusConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        super().setup()
        # The heads and adaptors, and the image tokenizer or the networks of latents, are not quantized.
        c, e = self.config, self.execution.unquantized
        width = c.llm.width
        self.und_adaptor = TwoLayerMLP(width, width, ("embed", "mlp", "embed"), e)
        self.gen_encoder = VQTokenizer(c.gen_encoder, e)
        self.gen_embed = Embedding(c.gen_encoder.codebook_size, c.gen_encoder.code_dim, ("vocab", None), e)
        self.gen_adaptor = TwoLayerMLP(width, width, (None, "mlp", "embed"), e)
        self.gen_head = TwoLayerMLP(
            c.gen_head_width, c.gen_encoder.codebook_size, ("embed", "mlp", "vocab"), e, output_dtype=jnp.float32
        )

    def embed_input_images(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """Returns embeddings of input images, patches in row-major order (§3.1, understanding adaptor)."""
        if self.config.understanding_encoder == "gen_encoder":
            return self.embed_image_tokens(self.tokenize(pixels))
        return self.und_adaptor(self.und_encoder(pixels))

    def tokenize(self, pixels: Float[Array, "B H W 3"]) -> Int[Array, "B N"]:
        """Returns the image tokens of images with pixels in [-1, 1]."""
        return self.gen_encoder.encode(pixels)

    def detokenize(self, ids: Int[Array, "B N"]) -> Float[Array, "B H W 3"]:
        """Returns the pixels of image tokens: about [-1, 1], not clipped."""
        return self.gen_encoder.decode(ids)

    def embed_image_tokens(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """Returns embeddings of image tokens (§3.1, generation adaptor)."""
        return self.gen_adaptor(self.gen_embed(ids))

    def embed(self, batch: Batch) -> Float[Array, "B L D"]:
        """Returns the embedding of every position. Runs the image tokenizer if the batch has no image tokens."""
        x = self.embed_text_and_input_images(batch)
        ids = self.target_image_tokens(batch)
        if ids.shape[1]:
            x = insert_images(x, self.embed_image_tokens(ids.reshape(len(ids), -1)), batch.gen_token_index)
        return x

    def target_image_tokens(self, batch: Batch) -> Int[Array, "B M N"]:
        """Returns the tokens of the target and context images: precomputed, or from the image tokenizer."""
        if batch.gen_ids is not None:
            return batch.gen_ids
        batch_size, images = batch.gen_images.shape[:2]
        if not images:
            return jnp.zeros((batch_size, 0, self.config.gen_encoder.num_tokens), jnp.int32)
        pixels = to_pixels(batch.gen_images.reshape(-1, *batch.gen_images.shape[2:]))
        return self.tokenize(pixels).reshape(batch_size, images, -1)

    def image_logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Returns logits over the image codebook, float32 (§3.1, image head)."""
        return self.gen_head(hidden)

    def init_all(self, batch: Batch) -> tuple[Array, Array, Array]:
        """Runs every module once, so that `init` creates every parameter."""
        hidden = self(batch)
        if self.config.understanding_encoder != "und_encoder":
            # Otherwise the parameter tree would depend on `understanding_encoder`.
            self.und_adaptor(self.und_encoder(to_pixels(batch.und_images[:, 0])))
        ids = jnp.zeros((batch.shape[0], self.config.gen_encoder.num_tokens), jnp.int32)
        return self.text_logits(hidden), self.image_logits(hidden), self.detokenize(ids)
