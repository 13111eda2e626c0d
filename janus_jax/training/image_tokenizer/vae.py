"""Training step of a VAE (arXiv 2112.10752, appendix G; SDXL's, arXiv 2307.01952, §2.4)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt8

from janus_jax.config import Execution
from janus_jax.models.backbone import Params, apply, to_images, to_pixels
from janus_jax.models.vae import VAE
from janus_jax.training.image_tokenizer import losses
from janus_jax.training.image_tokenizer.autoencoder import AutoencoderTraining, total_loss
from janus_jax.training.image_tokenizer.losses import Terms
from janus_jax.training.image_tokenizer.recipe import VAERecipe
from janus_jax.training.param_paths import merge
from janus_jax.training.state import TrainState


class VAETraining(AutoencoderTraining):
    """Initial state and training step of a VAE. Keyword arguments are those of `AutoencoderTraining`."""

    def __init__(self, recipe: VAERecipe, **options: Any) -> None:
        model, key = VAE(recipe.model, Execution(dtype=recipe.dtype)), jax.random.key(recipe.seed)
        super().__init__(recipe, model, recipe.image_size, key=key, **options)
        self.recipe = recipe

    def init(self) -> TrainState:
        """Returns the initial state."""
        return self.init_tokenizer()

    def step(
        self, state: TrainState, images: UInt8[Array, "B S S 3"], perceptual_params: Params
    ) -> tuple[TrainState, Terms]:
        """Trains on one batch. Returns the new state and scalar metrics."""
        pixels = to_pixels(images)
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), state.step)

        def loss(trained: Params) -> tuple[Float[Array, ""], Terms]:
            params = merge(trained, state.frozen)
            with self._encoding():
                latents = apply(self.model.encode, params, pixels)
            decoded = apply(self.model.decode, params, latents.sample(key)).astype(jnp.float32)
            terms = self._reconstruction_losses(perceptual_params, pixels, decoded)
            if self.recipe.losses.kl:
                terms["kl"] = self.recipe.losses.kl * losses.kl_loss(latents)
            return total_loss(terms)

        grads, metrics = jax.grad(loss, has_aux=True)(state.params)
        return self._update(state, grads), metrics | {"grad_norm": optax.tree.norm(grads)}

    def reconstruct(self, params: Params, images: UInt8[Array, "B S S 3"]) -> tuple[UInt8[Array, "B S S 3"], None]:
        """Returns the reconstructions of images. The second value would be code ids, which a VAE does not have."""
        return to_images(apply(self.model.__call__, params, to_pixels(images))), None
