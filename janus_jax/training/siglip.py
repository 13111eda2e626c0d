"""An understanding encoder from nothing: pictures and the captions that belong to them (SigLIP, arXiv 2303.15343, §3).

Where there is a released SigLIP, start from that. This is for worlds that none has seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, UInt8

from janus_jax.config import Execution, SiglipConfig
from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params, to_pixels
from janus_jax.models.layers import Embedding, LayerNorm, Linear, parameter
from janus_jax.models.siglip import Block, Siglip
from janus_jax.training.in_memory import Run, train_in_memory
from janus_jax.training.optimizers import OptimizerConfig, make_optimizer


@dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe(Run):
    """How the encoder is trained, beside what every `Run` states; each pair of a batch is told from all others in it.

    Attributes:
      encoder: what is trained.
      vocab_size: of the captions' ids.
      optimizer: see there.
      text_depth: blocks of the text tower, which are as wide as the encoder's and thrown away in the end.
      width: of the space that both towers map to.
      patchwise: whether each patch is left to itself: attention adds nothing. The loss asks for the mean over patches
        alone, and a small encoder soon writes what is in the picture everywhere, so that none can tell where it is
        (docs/shapes.md). SigLIP's has attention.
    """

    encoder: SiglipConfig
    vocab_size: int
    batch_size: int = 128
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3))
    text_depth: int = 2
    width: int = 128
    patchwise: bool = False


class TextTower(nn.Module):
    """Captions to one feature each: the mean over their places, those of padding (id 0) left out.

    As in SigLIP, padding is attended to.
    """

    recipe: ContrastiveRecipe

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        c, e = self.recipe.encoder, Execution()
        x = Embedding(self.recipe.vocab_size, c.width, ("vocab", "embed"), name="embed")(tokens) * c.width**0.5
        init = nn.initializers.normal(c.width**-0.5)
        x = x + parameter(self, "pos_embed", init, (tokens.shape[1], c.width), (None, "embed"), e)
        for i in range(self.recipe.text_depth):
            x, _ = Block(c, e, name=f"blocks_{i}")(x)
        x = LayerNorm(c.layer_norm_eps, e, name="norm")(x)
        there = (tokens != 0)[..., None]
        mean: Float[Array, "B D"] = jnp.sum(x * there, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)
        return mean


class TwoTowers(nn.Module):
    """Logits of every picture with every caption: eq. 1's `t x.y + b`."""

    recipe: ContrastiveRecipe

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"], tokens: Int[Array, "B T"]) -> Float[Array, "B B"]:
        width = self.recipe.width
        seen = Siglip(self.recipe.encoder, name="und_encoder")(pixels).mean(axis=1)
        seen = Linear((width,), ("embed", None), name="image_head")(seen)
        read = Linear((width,), ("embed", None), name="text_head")(TextTower(self.recipe, name="text")(tokens))
        seen, read = (x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in (seen, read))
        # The start of section 3: few pairs of a batch belong together, and the bias says so from the first step on.
        log_scale = self.param("log_scale", nn.initializers.constant(np.log(10.0)), ())
        bias = self.param("bias", nn.initializers.constant(-10.0), ())
        logits: Float[Array, "B B"] = jnp.exp(log_scale) * seen @ read.T + bias
        return logits


class _State(struct.PyTreeNode):
    step: Int[Array, ""]
    params: Params
    opt_state: Any


def sigmoid_loss(logits: Float[Array, "B B"]) -> Float[Array, ""]:
    """Every pair is a question of its own: do the two belong together? (§3, eq. 1)"""
    labels = 2 * jnp.eye(len(logits)) - 1
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(labels * logits), axis=-1))


def train_encoder(
    recipe: ContrastiveRecipe, images: UInt8[np.ndarray, "N S S 3"], captions: Int[np.ndarray, "N T"], workdir: Path
) -> tuple[Params, dict[str, float]]:
    """Trains as `train_in_memory` does.

    Args:
      images: RGB, 0..255.
      captions: the ids of each image's caption, padded with 0.

    Returns:
      The parameters of `und_encoder`, and the last figures: `loss`, and `retrieval`, the share of a batch's pictures
      whose own caption is the likeliest.

    Raises:
      JanusError: there are fewer pairs than a batch has.
      Preempted: the machine is taken away; all is saved.
    """
    if len(images) < recipe.batch_size or len(images) != len(captions):
        raise JanusError(
            f"There are {len(images)} images and {len(captions)} captions for batches of {recipe.batch_size}; "
            f"give as many of both, and a batch at least."
        )
    model = TwoTowers(recipe)
    init, step = _functions(recipe, model, captions.shape[1])
    state, figures = train_in_memory(recipe, init, step, (images, captions), workdir)
    return state.params["und_encoder"], figures


def _functions(recipe: ContrastiveRecipe, model: TwoTowers, length: int) -> tuple[Callable[[], _State], Any]:
    def boxed() -> Params:
        size = recipe.encoder.image_size
        pixels, tokens = jnp.zeros((1, size, size, 3)), jnp.zeros((1, length), jnp.int32)
        params: Params = model.init(jax.random.key(recipe.seed), pixels, tokens)["params"]
        return params

    optimizer = make_optimizer(recipe.optimizer, recipe.steps, jax.eval_shape(boxed))

    def init() -> _State:
        params = trained(nn.unbox(boxed()))
        return _State(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    # What attention adds is left at zero: constants have no gradient, and no decay moves a zero.
    trained = _without_attention if recipe.patchwise else lambda params: params

    def step(
        state: _State, images: UInt8[Array, "B S S 3"], tokens: Int[Array, "B T"]
    ) -> tuple[_State, dict[str, Array]]:
        def loss(params: Params) -> tuple[Array, Array]:
            logits: Any = model.apply({"params": trained(params)}, to_pixels(images), tokens)
            return sigmoid_loss(logits), logits

        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        right = jnp.argmax(logits, axis=-1) == jnp.arange(len(logits))
        after = _State(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        return after, {"loss": value, "retrieval": jnp.mean(right)}

    return init, jax.jit(step, donate_argnums=0)


def _without_attention(params: Params) -> Params:
    """The same, with zeros where the encoder's attention is mapped back into the features."""
    flat = flatten_dict(params)
    return unflatten_dict(
        {
            path: jnp.zeros_like(leaf) if path[0] == "und_encoder" and path[-3:-1] == ("attn", "out") else leaf
            for path, leaf in flat.items()
        }
    )
