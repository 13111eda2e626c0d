"""Training step of a VQ tokenizer, its codebook and its discriminator."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from janus_jax.config import Execution
from janus_jax.models.backbone import Params, apply, to_images, to_pixels
from janus_jax.models.vq import VQTokenizer, normalize
from janus_jax.training.image_tokenizer import codebook as codes
from janus_jax.training.image_tokenizer import losses
from janus_jax.training.image_tokenizer.autoencoder import AutoencoderTraining, all_params, total_loss
from janus_jax.training.image_tokenizer.codebook import CodeUsage
from janus_jax.training.image_tokenizer.losses import Quantized, Terms
from janus_jax.training.image_tokenizer.patchgan import PatchGAN
from janus_jax.training.image_tokenizer.recipe import VQRecipe
from janus_jax.training.optimizers import make_optimizer
from janus_jax.training.param_paths import merge
from janus_jax.training.state import TrainState, create_state


class VQState(struct.PyTreeNode):
    """State of VQ training.

    Attributes:
      tokenizer: Train state of the tokenizer.
      discriminator: Train state of the discriminator. None if there is no adversarial loss.
      usage: Moving average of the code usage.
    """

    tokenizer: TrainState
    discriminator: TrainState | None
    usage: CodeUsage


class VQTraining(AutoencoderTraining):
    """Initial state and training step of a VQ tokenizer. Keyword arguments are those of `AutoencoderTraining`."""

    def __init__(self, recipe: VQRecipe, **options: Any) -> None:
        model = VQTokenizer(recipe.model, Execution(dtype=recipe.dtype))
        key, self._discriminator_key = jax.random.split(jax.random.key(recipe.seed))
        super().__init__(recipe, model, recipe.image_size, key=key, **options)
        self.recipe, self.config = recipe, recipe.model
        self._discriminator = PatchGAN(recipe.discriminator.base_channels, recipe.discriminator.num_downsamplings)
        self._discriminator_optimizer = make_optimizer(recipe.discriminator.optimizer, recipe.steps)

    def init(self) -> VQState:
        """Returns the initial state."""
        discriminator = None
        if self.recipe.losses.adversarial:
            params = self._discriminator.init(self._discriminator_key, self._blank_image())["params"]
            discriminator = create_state(params, {}, self._discriminator_optimizer)
        tokenizer = self.init_tokenizer()
        return VQState(tokenizer, discriminator, self._uniform_usage(all_params(tokenizer)["codebook"]["embedding"]))

    def init_encoder(self, state: Any, images: UInt8[Array, "N S S 3"]) -> Any:
        """Returns the state with an encoder that computes the principal components of these images' patches."""
        return state.replace(tokenizer=super().init_encoder(state.tokenizer, images))

    def init_codebook(self, state: VQState, images: UInt8[Array, "B H W 3"]) -> VQState:
        """Returns the state with a codebook computed by k-means of the latents of these images."""
        params = all_params(state.tokenizer)
        latents = apply(self.model.latents, params, to_pixels(images)).reshape(-1, self.config.code_dim)
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), self.config.codebook_size)
        table = codes.kmeans(normalize(latents), self.config.codebook_size, key)
        tokenizer = self._tokenizer_state(_with_codebook(params, table))
        return VQState(tokenizer, state.discriminator, self._uniform_usage(table))

    def _uniform_usage(self, table: Float[Array, "V C"]) -> CodeUsage:
        return codes.uniform_usage(table, self.recipe.batch_size * self.config.num_tokens)

    def step(self, state: VQState, images: UInt8[Array, "B H W 3"], perceptual_params: Params) -> tuple[VQState, Terms]:
        """Trains on one batch. Returns the new state and scalar metrics."""
        tokenizer, pixels = state.tokenizer, to_pixels(images)
        grads, aux = jax.grad(self._loss, has_aux=True)(tokenizer.params, state, pixels, perceptual_params)
        updated = self._update(tokenizer, grads)
        table, usage, usage_metrics = self._update_codebook(updated, state, aux.quantized)
        if table is not None:
            # These codes are already averages, so the moving average of the parameters takes their values.
            ema = updated.ema and _with_codebook(updated.ema, table)
            updated = updated.replace(params=_with_codebook(updated.params, table), ema=ema)
        discriminator, discriminator_metrics = self._update_discriminator(state, pixels, aux.pixels)
        metrics = aux.metrics | discriminator_metrics | usage_metrics | {"grad_norm": optax.tree.norm(grads)}
        return VQState(updated, discriminator, usage), metrics

    def _loss(
        self, trained: Params, state: VQState, pixels: Float[Array, "B H W 3"], perceptual_params: Params
    ) -> tuple[Float[Array, ""], "_Forward"]:
        weights, params = self.recipe.losses, merge(trained, state.tokenizer.frozen)
        table = params["codebook"]["embedding"]
        with self._encoding():
            latents = apply(self.model.latents, params, pixels)
        quantized = losses.quantize(latents, table)
        decoded = apply(self.model.decode_codes, params, quantized.decoded).astype(jnp.float32)
        terms = self._reconstruction_losses(perceptual_params, pixels, decoded)
        if self.recipe.codebook.update == "gradient":
            terms["codebook"] = weights.codebook * losses.codebook_loss(quantized)
        terms["commitment"] = weights.commitment * losses.commitment_loss(quantized)
        if weights.entropy:
            entropy = losses.entropy_loss(quantized.latents, table, weights.entropy_temperature)
            terms["entropy"] = weights.entropy * entropy
        if state.discriminator is not None:
            # Before its start the discriminator does not run, because it takes as long as the rest of the step.
            discriminator = state.discriminator.params
            terms["adversarial"] = lax.cond(
                self._is_adversarial(state),
                lambda fake: weights.adversarial * losses.generator_hinge(self._discriminate(discriminator, fake)),
                lambda fake: jnp.zeros((), jnp.float32),
                decoded,
            )
        total, metrics = total_loss(terms)
        return total, _Forward(quantized, decoded, metrics)

    def _discriminate(self, params: Params, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w"]:
        return apply(self._discriminator.__call__, params, pixels)

    def _is_adversarial(self, state: VQState) -> Array:
        return state.tokenizer.step >= self.recipe.losses.adversarial_start

    def _update_discriminator(
        self, state: VQState, real: Float[Array, "B H W 3"], fake: Float[Array, "B H W 3"]
    ) -> tuple[TrainState | None, Terms]:
        if state.discriminator is None:
            return None, {}
        fake = lax.stop_gradient(fake)

        def loss(params: Params) -> tuple[Float[Array, ""], Terms]:
            real_logits, fake_logits = self._discriminate(params, real), self._discriminate(params, fake)
            hinge = losses.discriminator_hinge(real_logits, fake_logits)
            return hinge, {
                "discriminator/loss": hinge,
                "discriminator/real_logits": jnp.mean(real_logits),
                "discriminator/fake_logits": jnp.mean(fake_logits),
            }

        def update(discriminator: TrainState) -> tuple[TrainState, Terms]:
            grads, metrics = jax.grad(loss, has_aux=True)(discriminator.params)
            return discriminator.apply_gradients(grads, self._discriminator_optimizer), metrics

        metrics = jax.eval_shape(loss, state.discriminator.params)[1]
        zeros = {name: jnp.zeros((), jnp.float32) for name in metrics}
        return lax.cond(self._is_adversarial(state), update, lambda same: (same, zeros), state.discriminator)

    def _update_codebook(
        self, tokenizer: TrainState, state: VQState, quantized: Quantized
    ) -> tuple[Float[Array, "V C"] | None, CodeUsage, Terms]:
        """Returns the new codebook (None if only the optimizer changes it), the code usage and metrics."""
        recipe, size = self.recipe.codebook, self.config.codebook_size
        latents = lax.stop_gradient(quantized.latents).reshape(-1, self.config.code_dim)
        batch = codes.batch_usage(latents, quantized.ids.reshape(-1), size)
        usage = codes.update_usage(state.usage, batch, recipe.decay)
        metrics = {
            "codes/batch_perplexity": codes.perplexity(batch.counts),
            "codes/perplexity": codes.perplexity(usage.counts),
        }
        table = codes.mean_codes(usage) if recipe.update == "moving_average" else None
        if recipe.reseed_below:
            key = jax.random.fold_in(jax.random.key(self.recipe.seed), state.tokenizer.step)
            usage, is_new = codes.reseed(usage, latents, recipe.reseed_below, key)
            old = tokenizer.params["codebook"]["embedding"] if table is None else table
            table = jnp.where(is_new[:, None], normalize(usage.sums), old)
            metrics["codes/reseeded"] = jnp.sum(is_new).astype(jnp.float32)
        return table, usage, metrics

    def reconstruct(
        self, params: Params, images: UInt8[Array, "B S S 3"]
    ) -> tuple[UInt8[Array, "B S S 3"], Int[Array, "B N"]]:
        """Returns the reconstructions of images, and their code ids."""
        ids = apply(self.model.encode, params, to_pixels(images))
        return to_images(apply(self.model.decode, params, ids)), ids


class _Forward(NamedTuple):
    quantized: Quantized
    pixels: Float[Array, "B H W 3"]
    metrics: Terms


def _with_codebook(params: Params, table: Float[Array, "V C"]) -> Params:
    old = params["codebook"]["embedding"]
    return params | {"codebook": {"embedding": table.astype(old.dtype)}}
