"""Trains an understanding encoder on images and captions (SigLIP, arXiv 2303.15343, §3).

Prefer a released SigLIP. Train an encoder only for images unlike those of its training.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from janus_jax.config import Execution, SiglipConfig
from janus_jax.models.backbone import Params, to_pixels
from janus_jax.models.layers import Embedding, LayerNorm, Linear, parameter
from janus_jax.models.siglip import Block, Siglip
from janus_jax.training.array_batches import opened
from janus_jax.training.config_dicts import to_json
from janus_jax.training.data_parallel import DataParallel
from janus_jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from janus_jax.training.state import TrainState, create_state
from janus_jax.training.trainer import TrainingTask


@dataclass(frozen=True, kw_only=True)
class SiglipRecipe:
    """Recipe for an encoder and its text tower, which is discarded after training.

    Attributes:
      encoder: Architecture of the encoder.
      vocab_size: Vocabulary size of the captions.
      caption_length: Length of the captions in tokens; shorter ones are padded with 0.
      steps: Training steps.
      batch_size: Images with captions per step. The loss compares each image with all captions of the batch.
      optimizer: Optimizer of both towers.
      text_depth: Number of blocks of the text tower. Its width is that of the encoder.
      width: Width of the features that are compared.
      patchwise: Whether attention in the encoder is disabled, so that each patch is encoded alone. Because the loss
        depends on the mean over patches only, the attention of a small encoder spreads the content of the image over
        all patches, and the positions of objects are lost. The released SigLIP uses attention.
      seed: Seed of the initial parameters.
      save_every: Steps between checkpoints.
      report_every: Steps between reports of metrics.
    """

    encoder: SiglipConfig
    vocab_size: int
    caption_length: int
    steps: int
    batch_size: int = 128
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3))
    text_depth: int = 2
    width: int = 128
    patchwise: bool = False
    seed: int = 0
    save_every: int = 500
    report_every: int = 50


class TextTower(nn.Module):
    """Encodes each caption as the mean of its token features. The mean excludes padding (id 0).

    As in SigLIP, attention does not mask padding.
    """

    recipe: SiglipRecipe

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        c, e = self.recipe.encoder, Execution()
        x = Embedding(self.recipe.vocab_size, c.width, ("vocab", "embed"), name="embed")(tokens) * c.width**0.5
        init = nn.initializers.normal(c.width**-0.5)
        x = x + parameter(self, "pos_embed", init, (tokens.shape[1], c.width), (None, "embed"), e)
        for i in range(self.recipe.text_depth):
            x, _ = Block(c, e, name=f"blocks_{i}")(x)
        x = LayerNorm(c.layer_norm_eps, e, name="norm")(x)
        is_token = (tokens != 0)[..., None]
        mean: Float[Array, "B D"] = jnp.sum(x * is_token, axis=1) / jnp.maximum(jnp.sum(is_token, axis=1), 1)
        return mean


class TwoTowers(nn.Module):
    """Computes a logit for each pair of an image and a caption: `t x.y + b` in eq. 1."""

    recipe: SiglipRecipe

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"], tokens: Int[Array, "B T"]) -> Float[Array, "B B"]:
        width = self.recipe.width
        image = Siglip(self.recipe.encoder, name="und_encoder")(pixels).mean(axis=1)
        image = Linear((width,), ("embed", None), name="image_head")(image)
        text = Linear((width,), ("embed", None), name="text_head")(TextTower(self.recipe, name="text")(tokens))
        image, text = (x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in (image, text))
        # Initial values of §3. The bias starts low, because few pairs of a batch match.
        log_scale = self.param("log_scale", nn.initializers.constant(np.log(10.0)), ())
        bias = self.param("bias", nn.initializers.constant(-10.0), ())
        logits: Float[Array, "B B"] = jnp.exp(log_scale) * image @ text.T + bias
        return logits


def sigmoid_loss(logits: Float[Array, "B B"]) -> Float[Array, ""]:
    """Returns the loss of classifying each pair as matching or not (§3, eq. 1)."""
    labels = 2 * jnp.eye(len(logits)) - 1
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(labels * logits), axis=-1))


def siglip_task(
    recipe: SiglipRecipe, make_data: Callable[[], Any], *, mesh: Mesh | None = None
) -> TrainingTask[TrainState, Any]:
    """Returns the task that trains an encoder.

    The metrics are `loss` and `retrieval`, the fraction of images whose own caption has the highest logit.

    Args:
      make_data: Opens the data, for example `array_batches.ArrayBatches`. A batch consists of images (uint8 RGB) and
        the token ids of their captions.
      mesh: Mesh over which the batch is sharded; parameters are replicated. None uses one device.
    """
    parallel, model = DataParallel(mesh, recipe.batch_size), TwoTowers(recipe)

    def boxed_params() -> Params:
        pixels = jnp.zeros((1, recipe.encoder.image_size, recipe.encoder.image_size, 3))
        tokens = jnp.zeros((1, recipe.caption_length), jnp.int32)
        params: Params = model.init(jax.random.key(recipe.seed), pixels, tokens)["params"]
        return params

    optimizer = make_optimizer(recipe.optimizer, recipe.steps, jax.eval_shape(boxed_params))
    # The zeros stay zero: they are constants without a gradient, and weight decay does not change a zero.
    effective = _without_attention if recipe.patchwise else lambda params: params

    def init() -> TrainState:
        return create_state(effective(nn.unbox(boxed_params())), {}, optimizer)

    def step(
        state: TrainState, images: UInt8[Array, "B S S 3"], tokens: Int[Array, "B T"]
    ) -> tuple[TrainState, dict[str, Array]]:
        def loss(params: Params) -> tuple[Array, Array]:
            logits: Any = model.apply({"params": effective(params)}, to_pixels(images), tokens)
            return sigmoid_loss(logits), logits

        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        is_retrieved = jnp.argmax(logits, axis=-1) == jnp.arange(len(logits))
        metrics = {"loss": value, "retrieval": jnp.mean(is_retrieved)}
        return state.apply_gradients(grads, optimizer), metrics

    compiled = parallel.jit(step, donate_argnums=0)
    return TrainingTask(
        config=to_json(recipe),
        abstract_state=parallel.abstract(init),
        initial_state=lambda data: parallel.jit(init)(),
        step=lambda state, batch: compiled(state, *map(parallel.local_batch, batch)),
        open_data=lambda start: opened(lambda _: make_data(), start),
        counts=lambda batch, data: {"images": recipe.batch_size},
        last_step=recipe.steps,
        mesh=mesh,
        save_every=recipe.save_every,
        report_every=recipe.report_every,
        learning_rate=make_schedule(recipe.optimizer, recipe.steps),
        progress_metrics=("loss", "retrieval"),
        facts={"batch": f"{recipe.batch_size:,} images with captions"},
        steps_field="SiglipRecipe.steps",
    )


def _without_attention(params: Params) -> Params:
    """Returns the parameters with zeros in the output projections of the encoder's attention."""
    flat = flatten_dict(params)
    projections = [path for path in flat if path[0] == "und_encoder" and path[-3:-1] == ("attn", "out")]
    return unflatten_dict(flat | {path: jnp.zeros_like(flat[path]) for path in projections})
