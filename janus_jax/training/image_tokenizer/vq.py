"""One step: the tokenizer against the images and the discriminator, the discriminator against the tokenizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt8

from janus_jax.config import Execution
from janus_jax.models.backbone import Params, to_pixels
from janus_jax.models.vq import VQTokenizer, normalize
from janus_jax.training.ema import ramped_average
from janus_jax.training.image_tokenizer import codebook as codes
from janus_jax.training.image_tokenizer import losses
from janus_jax.training.image_tokenizer.codebook import CodeUse
from janus_jax.training.image_tokenizer.losses import Quantized
from janus_jax.training.image_tokenizer.patchgan import PatchGAN
from janus_jax.training.image_tokenizer.pca_init import as_principal, beside_constant, half_whitened
from janus_jax.training.image_tokenizer.receptive_field import encoder_reach, reach_mask, within_reach
from janus_jax.training.image_tokenizer.recipe import TokenizerRecipe
from janus_jax.training.optimizers import make_optimizer

Scalars = dict[str, Float[Array, ""]]
Perceptual = Callable[[Params, Array, Array], Float[Array, ""]]
"""Parameters, images and reconstructions in [-1, 1] -> their mean distance."""


class TokenizerState(struct.PyTreeNode):
    """Everything that training moves on.

    Attributes:
      step: steps done.
      params, opt_state: the tokenizer's.
      discriminator, discriminator_opt_state: empty where none is trained.
      ema: the average of the tokenizer's parameters that is exported.
      use: of the codes.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    discriminator: Params
    discriminator_opt_state: Any
    ema: Params
    use: CodeUse


class TokenizerTraining:
    """The step of one recipe, and the state it starts from.

    Args:
      recipe: what is trained, and how.
      perceptual: the perceptual distance; None where its weights are not given.

    Raises:
      JanusError: an optimizer's warm-up is longer than the training.
    """

    def __init__(self, recipe: TokenizerRecipe, perceptual: Perceptual | None = None) -> None:
        self.recipe, self.config = recipe, recipe.model
        self.model = VQTokenizer(recipe.model, Execution(dtype=recipe.dtype))
        self.discriminator = PatchGAN(
            recipe.architecture.discriminator_channels, recipe.architecture.discriminator_downsamplings
        )
        abstract = jax.eval_shape(self._init_params, jax.random.key(0))
        self._optimizer = make_optimizer(recipe.optimizer, recipe.steps, abstract)
        self._discriminator_optimizer = make_optimizer(recipe.discriminator_optimizer, recipe.steps)
        self._perceptual = perceptual if recipe.losses.perceptual else None

    @property
    def is_adversarial(self) -> bool:
        """Whether there is a discriminator."""
        return self.recipe.losses.adversarial > 0

    def init(self) -> TokenizerState:
        """The state before the first step, on the default device; to be traced under `jit` with shardings."""
        tokenizer_key, discriminator_key = jax.random.split(jax.random.key(self.recipe.seed))
        pixels = jnp.zeros((1, self.config.image_size, self.config.image_size, 3))
        params = nn.unbox(self._init_params(tokenizer_key))
        params = within_reach(params, reach_mask(params, self.recipe.architecture.encoder_reach))
        discriminator: Params = {}
        if self.is_adversarial:
            discriminator = self.discriminator.init(discriminator_key, pixels)["params"]
        return TokenizerState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self._optimizer.init(params),
            discriminator=discriminator,
            discriminator_opt_state=self._discriminator_optimizer.init(discriminator),
            ema=jax.tree.map(jnp.copy, params),
            use=codes.start_use(params["codebook"]["embedding"], self.recipe.batch_size * self.config.num_tokens),
        )

    def _init_params(self, key: Key[Array, ""]) -> Params:
        pixels = jnp.zeros((1, self.config.image_size, self.config.image_size, 3))
        return self.model.init(key, pixels)["params"]

    def start_from(self, state: TokenizerState, images: UInt8[Array, "B H W 3"]) -> TokenizerState:
        """The state with latents spread evenly over these images, and a codebook of their k-means.

        `quant_conv` becomes the principal components of what the encoder gives (`principal.half_whitened`), and the
        encoder, where the recipe says so, those of the images.
        """
        params, pixels = state.params, to_pixels(images)
        if self.recipe.architecture.encoder_start == "principal":
            params = params | {"encoder": as_principal(params["encoder"], pixels, self.config)}
        with encoder_reach(self.recipe.architecture.encoder_reach):
            features = run(self.model, params, pixels, method=lambda model, pixels: model.encoder(pixels))
        features = features.reshape(-1, features.shape[-1]).astype(jnp.float32)
        weight, bias = beside_constant(*half_whitened(features, self.config.code_dim - 1))
        table = codes.kmeans(
            normalize(features @ weight.T + bias),
            self.config.codebook_size,
            jax.random.fold_in(jax.random.key(self.recipe.seed), self.config.codebook_size),
        )
        params = _with_codebook(params, table)
        dtype = params["quant_conv"]["weight"].dtype
        params = params | {"quant_conv": {"weight": weight.astype(dtype), "bias": bias.astype(dtype)}}
        use = codes.start_use(table, self.recipe.batch_size * self.config.num_tokens)
        # A copy: a step gives its arrays away, and none can be given twice.
        return state.replace(params=params, ema=jax.tree.map(jnp.copy, params), use=use)

    def step(
        self, state: TokenizerState, images: UInt8[Array, "B H W 3"], perceptual_params: Params
    ) -> tuple[TokenizerState, Scalars]:
        """The state after one batch, and what there is to report of it."""
        pixels = to_pixels(images)
        gradient = jax.grad(self._generator_loss, has_aux=True)
        grads, aux = gradient(state.params, state, pixels, perceptual_params)
        architecture = self.recipe.architecture
        grads = within_reach(grads, reach_mask(grads, architecture.encoder_reach))
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        held = {name: updates[name] for name in ("encoder", "quant_conv")}
        updates |= jax.tree.map(lambda update: architecture.encoder_rate * update, held)
        params = optax.apply_updates(state.params, updates)
        params, use, use_scalars = self._update_codebook(params, state, aux.quantized)
        discriminator, discriminator_opt_state, against = self._update_discriminator(state, pixels, aux.pixels)
        scalars = {"grad_norm": optax.tree.norm(grads)}
        return state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            discriminator=discriminator,
            discriminator_opt_state=discriminator_opt_state,
            ema=self._average(state, params),
            use=use,
        ), aux.scalars | against | use_scalars | scalars

    def _forward(self, params: Params, pixels: Float[Array, "B H W 3"]) -> tuple[Quantized, Float[Array, "B H W 3"]]:
        with encoder_reach(self.recipe.architecture.encoder_reach):
            latents = run(self.model, params, pixels, method=self.model.latents)
        if not self.recipe.architecture.encoder_rate:
            latents = lax.stop_gradient(latents)
        quantized = losses.quantize(latents, params["codebook"]["embedding"])
        decoded = run(self.model, params, quantized.decoded, method=self.model.decode_codes)
        return quantized, decoded.astype(jnp.float32)

    def _generator_loss(
        self, params: Params, state: TokenizerState, pixels: Float[Array, "B H W 3"], perceptual_params: Params
    ) -> tuple[Float[Array, ""], "_Forward"]:
        weights = self.recipe.losses
        quantized, decoded = self._forward(params, pixels)
        terms = losses.pixel_losses(weights, pixels, decoded)
        if self._perceptual is not None:
            terms["perceptual"] = weights.perceptual * self._perceptual(perceptual_params, pixels, decoded)
        if self.recipe.codebook.update == "gradient":
            terms["codebook"] = weights.codebook * losses.codebook_loss(quantized)
        terms["commitment"] = weights.commitment * losses.commitment_loss(quantized)
        if weights.entropy:
            entropy = losses.entropy_loss(
                quantized.latents, params["codebook"]["embedding"], weights.entropy_temperature
            )
            terms["entropy"] = weights.entropy * entropy
        if self.is_adversarial:
            # Not run at all before its start: it costs as much as the rest.
            terms["adversarial"] = lax.cond(
                self._has_started(state.step),
                lambda fake: weights.adversarial * losses.generator_hinge(self._judge(state.discriminator, fake)),
                lambda fake: jnp.zeros((), jnp.float32),
                decoded,
            )
        total = jnp.sum(jnp.stack(list(terms.values())))
        scalars = {f"loss/{name}": value for name, value in terms.items()} | {"loss/total": total}
        return total, _Forward(quantized, decoded, scalars)

    def _judge(self, discriminator: Params, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w"]:
        logits: Float[Array, "B h w"] = run(self.discriminator, discriminator, pixels)
        return logits

    def _has_started(self, step: Int[Array, ""]) -> Array:
        return step >= self.recipe.losses.adversarial_start

    def _update_discriminator(
        self, state: TokenizerState, real: Float[Array, "B H W 3"], fake: Float[Array, "B H W 3"]
    ) -> tuple[Params, Any, Scalars]:
        if not self.is_adversarial:
            return state.discriminator, state.discriminator_opt_state, {}
        fake = lax.stop_gradient(fake)

        def loss(params: Params) -> tuple[Float[Array, ""], Scalars]:
            real_logits, fake_logits = self._judge(params, real), self._judge(params, fake)
            hinge = losses.discriminator_hinge(real_logits, fake_logits)
            return hinge, _verdict(hinge, real_logits, fake_logits)

        def update(params: Params, opt_state: Any) -> tuple[Params, Any, Scalars]:
            grads, scalars = jax.grad(loss, has_aux=True)(params)
            updates, opt_state = self._discriminator_optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, scalars

        def leave(params: Params, opt_state: Any) -> tuple[Params, Any, Scalars]:
            zero = jnp.zeros((), jnp.float32)
            return params, opt_state, _verdict(zero, zero, zero)

        return lax.cond(
            self._has_started(state.step), update, leave, state.discriminator, state.discriminator_opt_state
        )

    def _update_codebook(
        self, params: Params, state: TokenizerState, quantized: Quantized
    ) -> tuple[Params, CodeUse, Scalars]:
        recipe, size = self.recipe.codebook, self.config.codebook_size
        latents = lax.stop_gradient(quantized.latents).reshape(-1, self.config.code_dim)
        batch = codes.count_use(latents, quantized.ids.reshape(-1), size)
        use = codes.average_use(state.use, batch, recipe.decay)
        scalars = {
            "codes/batch_perplexity": codes.perplexity(batch.counts),
            "codes/perplexity": codes.perplexity(use.counts),
        }
        table = params["codebook"]["embedding"]
        if recipe.update == "moving_average":
            table = codes.mean_codes(use)
        if recipe.reseed_below:
            key = jax.random.fold_in(jax.random.key(self.recipe.seed), state.step)
            use, is_new = codes.reseed(use, latents, recipe.reseed_below, key)
            table = jnp.where(is_new[:, None], normalize(use.sums), table)
            scalars["codes/reseeded"] = jnp.sum(is_new).astype(jnp.float32)
        return _with_codebook(params, table), use, scalars

    def _average(self, state: TokenizerState, params: Params) -> Params:
        if not self.recipe.ema_decay:
            return params
        ema = ramped_average(state.ema, params, self.recipe.ema_decay, state.step)
        if self.recipe.codebook.update == "gradient" and not self.recipe.codebook.reseed_below:
            return ema
        # An average already; and between a dead code and the one in its place there is nothing.
        return _with_codebook(ema, params["codebook"]["embedding"])


def run(module: nn.Module, params: Params, *arguments: Any, method: Callable[..., Any] | None = None) -> Any:
    """What a module, or one of its methods, gives with these parameters."""
    return module.apply({"params": params}, *arguments, method=method)


class _Forward(NamedTuple):
    quantized: Quantized
    pixels: Float[Array, "B H W 3"]
    scalars: Scalars


def _verdict(hinge: Array, real_logits: Array, fake_logits: Array) -> Scalars:
    return {
        "discriminator/loss": hinge,
        "discriminator/real_logits": jnp.mean(real_logits),
        "discriminator/fake_logits": jnp.mean(fake_logits),
    }


def _with_codebook(params: Params, table: Float[Array, "V C"]) -> Params:
    old = params["codebook"]["embedding"]
    return params | {"codebook": {"embedding": table.astype(old.dtype)}}
