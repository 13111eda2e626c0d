"""Code shared by VQ and VAE training: parameters, optimizer and reconstruction losses."""

import contextlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from janus_jax.config import VQConfig
from janus_jax.models.backbone import Params
from janus_jax.training.image_tokenizer import losses
from janus_jax.training.image_tokenizer.losses import PixelLosses, Terms
from janus_jax.training.image_tokenizer.patchwise import patchwise_encoder
from janus_jax.training.image_tokenizer.pca_init import initialize_vae, initialize_vq
from janus_jax.training.image_tokenizer.recipe import VAERecipe, VQRecipe
from janus_jax.training.optimizers import make_optimizer
from janus_jax.training.param_paths import merge, partition
from janus_jax.training.state import TrainState, create_state

Perceptual = Callable[[Params, Array, Array], Float[Array, ""]]
"""Maps parameters, images and reconstructions (pixels in [-1, 1]) to the mean perceptual distance."""


class AutoencoderTraining:
    """Parameters, optimizer and reconstruction losses of a recipe.

    Args:
      model: The autoencoder.
      key: Random key of the initial parameters.
      perceptual: Perceptual distance; None omits the term.
      pixel_losses: Computes the reconstruction losses on pixels.

    Raises:
      JanusError: The warm-up is longer than the training, or `recipe.trained` matches no parameter.
    """

    def __init__(
        self,
        recipe: VQRecipe | VAERecipe,
        model: nn.Module,
        image_size: int,
        *,
        key: Key[Array, ""],
        perceptual: Perceptual | None = None,
        pixel_losses: PixelLosses = losses.pixel_losses,
    ) -> None:
        self.model = model
        self._recipe, self._image_size, self._key = recipe, image_size, key
        self._perceptual, self._pixel_losses = perceptual, pixel_losses
        trained, frozen = partition(jax.eval_shape(self._boxed_params), recipe.trained)
        # The kernels of a trained encoder do not stay zero outside the patch.
        self.is_patchwise = bool(recipe.pca_images) and "encoder" in frozen and "encoder" not in trained
        self._optimizer = make_optimizer(recipe.optimizer, recipe.steps, trained)

    def init_tokenizer(self) -> TrainState:
        """Returns the initial state of the autoencoder."""
        return self._tokenizer_state(nn.unbox(self._boxed_params()))

    def init_encoder(self, state: TrainState, images: UInt8[Array, "N S S 3"]) -> TrainState:
        """Returns the initial state with an encoder that computes the principal components of these images' patches.

        Raises:
          JanusError: The architecture cannot represent them.
        """
        config = self._recipe.model
        initialize = initialize_vq(config, images) if isinstance(config, VQConfig) else initialize_vae(config, images)
        return self._tokenizer_state(initialize(all_params(state)))

    def _encoding(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which the encoder of a training step is computed."""
        return patchwise_encoder() if self.is_patchwise else contextlib.nullcontext()

    def _boxed_params(self) -> Params:
        params: Params = self.model.init(self._key, self._blank_image())["params"]
        return params

    def _blank_image(self) -> Float[Array, "1 S S 3"]:
        return jnp.zeros((1, self._image_size, self._image_size, 3))

    def _tokenizer_state(self, params: Params) -> TrainState:
        trained, frozen = partition(params, self._recipe.trained)
        ema = self._recipe.ema_decay > 0
        return create_state(trained, frozen, self._optimizer, frozen_dtype="float32", ema=ema)

    def _reconstruction_losses(
        self, perceptual_params: Params, pixels: Float[Array, "B H W 3"], decoded: Float[Array, "B H W 3"]
    ) -> Terms:
        weights = self._recipe.losses
        terms = self._pixel_losses(weights, pixels, decoded)
        if self._perceptual is not None and weights.perceptual:
            terms["perceptual"] = weights.perceptual * self._perceptual(perceptual_params, pixels, decoded)
        return terms

    def _update(self, state: TrainState, grads: Params) -> TrainState:
        # The decay of the moving average is lower in early steps, whose parameters are still random.
        decay = jnp.minimum(self._recipe.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        return state.apply_gradients(grads, self._optimizer, decay)


def all_params(state: TrainState, *, average: bool = False) -> Params:
    """Returns the trained and frozen parameters.

    Args:
      average: Whether to return the moving averages of the trained parameters, if the state has them.
    """
    return merge(state.ema if average and state.ema is not None else state.params, state.frozen)


def total_loss(terms: Terms) -> tuple[Float[Array, ""], Terms]:
    """Returns the sum of the loss terms, and the metrics `loss/TERM` and `loss/total`."""
    total = jnp.sum(jnp.stack(list(terms.values())))
    return total, {f"loss/{name}": value for name, value in terms.items()} | {"loss/total": total}
