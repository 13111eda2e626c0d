"""Janus: one causal transformer between two visual encoders, one for understanding and one for generation.

Janus (arXiv 2410.13848, §3.1, figure 2). The parameter tree carries the paper's names: `und_encoder`, `und_adaptor`,
`gen_encoder`, `gen_embed`, `gen_adaptor`, `gen_head`, `llm`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import Execution, JanusConfig
from janus_jax.models.layers import Axes, Embedding, Linear
from janus_jax.models.llama import KVCache, Llama, stack_layers, unstack_layers
from janus_jax.models.siglip import Siglip, stack_blocks, unstack_blocks
from janus_jax.models.vq import VQTokenizer

Params = dict[str, Any]
"""A parameter tree, or what lies beneath one of its names."""


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


def to_pixels(images: UInt8[Array, "*B H W 3"]) -> Float[Array, "*B H W 3"]:
    """Pixels in [-1, 1] from images in 0..255."""
    return images.astype(jnp.float32) * (2 / 255) - 1


def to_images(pixels: Float[Array, "*B H W 3"]) -> UInt8[Array, "*B H W 3"]:
    """Images in 0..255 from pixels in [-1, 1]; what lies beyond is clipped, what lies between is cut off.

    Cut off and not rounded, as the reference does when it writes its pictures.
    """
    return jnp.clip((pixels.astype(jnp.float32) + 1) / 2 * 255, 0, 255).astype(jnp.uint8)


class Janus(nn.Module):
    """Embeds rows of places, runs the transformer over them, and reads text or image logits."""

    config: JanusConfig
    execution: Execution = Execution()

    def setup(self) -> None:
        c, e = self.config, self.execution
        width = c.llm.width
        self.und_encoder = Siglip(c.und_encoder, e)
        self.und_adaptor = TwoLayerMLP(width, width, ("embed", "mlp", "embed"), e)
        self.gen_encoder = VQTokenizer(c.gen_encoder, e)
        self.gen_embed = Embedding(c.gen_encoder.codebook_size, c.gen_encoder.code_dim, ("vocab", None), e)
        self.gen_adaptor = TwoLayerMLP(width, width, (None, "mlp", "embed"), e)
        self.gen_head = TwoLayerMLP(
            c.gen_head_width, c.gen_encoder.codebook_size, ("embed", "mlp", "vocab"), e, output_dtype=jnp.float32
        )
        self.llm = Llama(c.llm, e)

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

    def embed_text(self, ids: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
        """Embeddings of text ids."""
        return self.llm.embed(ids)

    def embed_image_ids(self, ids: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
        """Embeddings of image ids (§3.1, generation adaptor)."""
        return self.gen_adaptor(self.gen_embed(ids))

    def embed(self, batch: Batch) -> Float[Array, "B L D"]:
        """Fills each place of a batch with its embedding; runs the tokenizer where image ids are not yet known."""
        x = self.embed_text(batch.tokens)
        if batch.und_images.shape[1]:
            rows, images = batch.und_images.shape[:2]
            features = self.understand(to_pixels(batch.und_images.reshape(-1, *batch.und_images.shape[2:])))
            x = _fill(x, features.reshape(rows, images * features.shape[1], -1), batch.und_places)
        image_ids = self.generation_ids(batch)
        if image_ids.shape[1]:
            x = _fill(x, self.embed_image_ids(image_ids.reshape(len(image_ids), -1)), batch.gen_places)
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

    def __call__(self, batch: Batch) -> Float[Array, "B L D"]:
        """Hidden states of every place; `text_logits` and `image_logits` read them."""
        hidden, _ = self.llm(self.embed(batch), batch.positions, batch.segment_ids)
        return hidden

    def prefill(self, batch: Batch, slots: int) -> tuple[Float[Array, "B L D"], KVCache]:
        """Hidden states of prompts, and a cache of `slots` slots that begins with them."""
        return self.llm.prefill(self.embed(batch), batch.positions, batch.segment_ids, slots)

    def extend(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"], cache: KVCache
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Hidden states of T more embedded places, and the cache with them."""
        hidden, extended = self.llm(x, positions, segment_ids, cache)
        assert extended is not None
        return hidden, extended

    def text_logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Logits over the text vocabulary, float32."""
        return self.llm.logits(hidden)

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


def _fill(x: Float[Array, "B L D"], images: Float[Array, "B M D"], places: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    """Puts row-local image embeddings into the places that name them."""
    filled = jnp.take_along_axis(images.astype(x.dtype), jnp.maximum(places, 0)[..., None], axis=1)
    return jnp.where((places == NO_IMAGE)[..., None], x, filled)


def init_params(config: JanusConfig, key: Array, execution: Execution = Execution()) -> Params:
    """Freshly made parameters, boxed with their logical axis names (`flax.linen.unbox` gives the plain tree)."""
    und, gen = config.und_encoder, config.gen_encoder
    length = und.num_patches + gen.num_tokens
    zeros = jnp.zeros((1, length), jnp.int32)
    batch = Batch(
        tokens=zeros,
        segment_ids=zeros + 1,
        positions=zeros,
        und_places=zeros,
        gen_places=zeros,
        und_images=jnp.zeros((1, 1, und.image_size, und.image_size, 3), jnp.uint8),
        gen_images=jnp.zeros((1, 1, gen.image_size, gen.image_size, 3), jnp.uint8),
    )
    params: Params = Janus(config, execution).init(key, batch, method="touch")["params"]
    return params


def abstract_params(config: JanusConfig, execution: Execution = Execution()) -> Params:
    """Shapes, dtypes and logical axis names of the parameters, with nothing computed."""
    params: Params = jax.eval_shape(lambda key: init_params(config, key, execution), jax.random.key(0))
    return params


def unroll_params(params: Params, config: JanusConfig) -> Params:
    """Parameters in the form that `Execution.layers` "unrolled" reads, from that of training and checkpoints."""
    return params | {
        "und_encoder": unstack_blocks(params["und_encoder"], config.und_encoder),
        "llm": unstack_layers(params["llm"], config.llm),
    }


def scan_params(params: Params, config: JanusConfig) -> Params:
    """The inverse of `unroll_params`."""
    return params | {
        "und_encoder": stack_blocks(params["und_encoder"], config.und_encoder),
        "llm": stack_layers(params["llm"], config.llm),
    }


def apply(model: Janus, params: Params, method: str, *args: Any) -> Any:
    """The result of one of the model's methods with these parameters."""
    return model.apply({"params": params}, *args, method=method)
