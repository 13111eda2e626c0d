"""A VAE for a world that none has seen: latents that are principal components, and a decoder that learns to read them.

Where pictures are photographs, SDXL's VAE is there (arXiv 2307.01952, §2.4). Here nothing of the encoder is learnt: it
gives the first principal components of each patch, half whitened, so that a flow meets few numbers, each of which says
something, in place of all pixels; its deviations are one constant. The decoder learns pixels from draws of that, so
that it bears latents that are a little wrong.
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
from jaxtyping import Array, Float, Int, UInt8

from janus_jax.config import VAEConfig
from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params, to_pixels
from janus_jax.models.vae import VAE
from janus_jax.training.ema import ramped_average
from janus_jax.training.image_tokenizer.losses import pixel_losses
from janus_jax.training.image_tokenizer.pca_init import as_principal, check_principal, half_whitened
from janus_jax.training.image_tokenizer.recipe import PixelWeights
from janus_jax.training.in_memory import Run, train_in_memory
from janus_jax.training.optimizers import OptimizerConfig, make_optimizer

_LEARNT = ("decoder", "post_quant_conv")


@dataclass(frozen=True, kw_only=True)
class VAERecipe(Run):
    """How the VAE is made, beside what every `Run` states.

    Attributes:
      model: its numbers; latents have about variance 1 as they are, so that its `scaling_factor` is 1.
      image_size: pixels along a side.
      principal_images: whose patches the components are of.
      deviation: of the latents that the encoder tells.
      optimizer: of the decoder.
      losses: of its pixels.
      ema_decay: of the average of the decoder's weights, which is what training gives.
    """

    model: VAEConfig
    image_size: int
    principal_images: int = 1024
    deviation: float = 0.1
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3))
    losses: PixelWeights = field(default_factory=PixelWeights)
    ema_decay: float = 0.98

    def __post_init__(self) -> None:
        check_principal(self.model, 2 * self.model.latent_channels)
        kept = self.model.level_channels[-2] - self.model.norm_groups
        if self.model.latent_channels > kept:
            raise JanusError(
                f"The VAE has latent_channels {self.model.latent_channels}, but of its encoder's components {kept} "
                f"come through the last norm; take as many at most, or more channels before the lowest resolution."
            )
        if self.image_size % self.model.downsampling:
            raise JanusError(
                f"image_size {self.image_size} is not a multiple of {self.model.downsampling}, the VAE's downsampling."
            )
        if self.deviation <= 0 or not 0 <= self.ema_decay < 1:
            raise JanusError(
                f"The VAE's recipe has deviation {self.deviation} and ema_decay {self.ema_decay}; the first must be "
                f"above 0, the second from 0 to below 1."
            )


class _State(struct.PyTreeNode):
    step: Int[Array, ""]
    params: Params
    opt_state: Any
    ema: Params


def train_vae(
    recipe: VAERecipe, images: UInt8[np.ndarray, "N S S 3"], workdir: Path
) -> tuple[Params, dict[str, float]]:
    """Trains as `train_in_memory` does.

    Args:
      images: RGB, 0..255.

    Returns:
      The VAE's parameters, and the last figures: the parts of `loss`, and it.

    Raises:
      JanusError: there are fewer images than a batch has, or of another size.
      Preempted: the machine is taken away; all is saved.
    """
    size = recipe.image_size
    if len(images) < recipe.batch_size or images.shape[1:] != (size, size, 3):
        raise JanusError(
            f"There are {len(images)} images of {images.shape[1]} by {images.shape[2]} pixels; the recipe needs "
            f"{recipe.batch_size} at least, of {size} by {size}."
        )
    init, step = _functions(recipe, images[: recipe.principal_images])
    state, figures = train_in_memory(recipe, init, step, (images,), workdir)
    return {**state.params, **state.ema}, figures


def principal_vae(recipe: VAERecipe, params: Params, pixels: Float[Array, "B S S 3"]) -> Params:
    """The parameters, of which the encoder's are made of these images."""
    model, latents = VAE(recipe.model), recipe.model.latent_channels
    params = params | {"encoder": as_principal(params["encoder"], pixels, recipe.model)}
    features: Any = model.apply({"params": params}, pixels, method=lambda vae, pixels: vae.encoder(pixels))
    features = features.reshape(-1, features.shape[-1])
    weight, bias = half_whitened(features, latents)
    scale = jnp.std(features @ weight.T, axis=0, keepdims=True)
    unit = jnp.sqrt(jnp.mean(jnp.square(scale)))
    variances = jnp.full(latents, 2 * jnp.log(recipe.deviation))
    return params | {
        "quant_conv": {
            "weight": jnp.concatenate([weight / unit, jnp.zeros_like(weight)]),
            "bias": jnp.concatenate([bias / unit, variances]),
        }
    }


def _functions(recipe: VAERecipe, first: UInt8[np.ndarray, "M S S 3"]) -> tuple[Callable[[], _State], Any]:
    model, size = VAE(recipe.model), recipe.image_size

    def boxed() -> Params:
        params: Params = model.init(jax.random.key(recipe.seed), jnp.zeros((1, size, size, 3)))["params"]
        return params

    abstract = jax.eval_shape(boxed)
    optimizer = make_optimizer(recipe.optimizer, recipe.steps, {name: abstract[name] for name in _LEARNT})

    def init() -> _State:
        params = principal_vae(recipe, nn.unbox(boxed()), to_pixels(jnp.asarray(first)))
        learnt = {name: params.pop(name) for name in _LEARNT}
        ema = jax.tree.map(jnp.copy, learnt)
        return _State(jnp.zeros((), jnp.int32), params | learnt, optimizer.init(learnt), ema)

    def step(state: _State, images: UInt8[Array, "B S S 3"]) -> tuple[_State, dict[str, Array]]:
        pixels = to_pixels(images)
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)

        def loss(learnt: Params) -> tuple[Array, dict[str, Array]]:
            params = {"params": state.params | learnt}
            encoded: Any = model.apply(params, pixels, method=model.encode)
            decoded: Any = model.apply(params, encoded.sample(key), method=model.decode)
            terms = pixel_losses(recipe.losses, pixels, decoded)
            return jnp.sum(jnp.stack(list(terms.values()))), terms

        learnt = {name: state.params[name] for name in _LEARNT}
        (total, terms), grads = jax.value_and_grad(loss, has_aux=True)(learnt)
        updates, opt_state = optimizer.update(grads, state.opt_state, learnt)
        learnt = optax.apply_updates(learnt, updates)
        ema = ramped_average(state.ema, learnt, recipe.ema_decay, state.step)
        return _State(state.step + 1, state.params | learnt, opt_state, ema), terms | {"loss": total}

    return init, jax.jit(step, donate_argnums=0)
