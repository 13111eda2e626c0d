"""Trains the image tokenizers of this example: a VQ tokenizer for Janus and a VAE for JanusFlow."""

from pathlib import Path

import jax.numpy as jnp
from jaxtyping import Array, Float

from examples.shapes.dataset import sample_images
from examples.shapes.patchwise import patchwise_encoder
from examples.shapes.pca_init import initialize_vae, initialize_vq
from examples.shapes.tokenizer_metrics import reconstruction_metrics
from janus_jax.training.image_tokenizer.recipe import LossWeights, VAERecipe, VQRecipe
from janus_jax.training.image_tokenizer.task import Extensions, train_tokenizer

_COLOR_WEIGHT, _EDGE_WEIGHT = 4.0, 0.25
_PCA_IMAGES = 1024
_EVAL_SEED = 1 << 20


def train(recipe: VQRecipe | VAERecipe, workdir: Path, *, num_images: int = 4096) -> Path:
    """Trains an image tokenizer on images of random scenes.

    Returns:
      The folder of the tokenizer, `WORKDIR/tokenizer`.
    """
    size = recipe.image_size
    images = sample_images(recipe.seed, num_images, size)
    first = images[:_PCA_IMAGES]
    if isinstance(recipe, VQRecipe):
        initialize = initialize_vq(recipe.model, first)
    else:
        initialize = initialize_vae(recipe.model, first)
    extensions = Extensions(
        images=images,
        eval_images=sample_images(recipe.seed + _EVAL_SEED, recipe.intervals.eval_images, size),
        initialize=initialize,
        pixel_losses=pixel_losses,
        metrics=reconstruction_metrics,
    )
    with patchwise_encoder():
        return train_tokenizer(recipe, workdir, extensions=extensions)


def pixel_losses(
    weights: LossWeights, images: Float[Array, "B H W 3"], reconstructions: Float[Array, "B H W 3"]
) -> dict[str, Float[Array, ""]]:
    """Returns an edge loss, and pixel losses weighted by chroma, because objects are small on a pale background."""
    error = reconstructions - images
    chroma = (jnp.max(images, axis=-1, keepdims=True) - jnp.min(images, axis=-1, keepdims=True)) / 2
    importance = 1 + _COLOR_WEIGHT * chroma
    return {
        "l2": weights.l2 * jnp.mean(importance * jnp.square(error)),
        "l1": weights.l1 * jnp.mean(importance * jnp.abs(error)),
        "edge": _EDGE_WEIGHT * edge_loss(images, reconstructions),
    }


def edge_loss(images: Float[Array, "B H W 3"], reconstructions: Float[Array, "B H W 3"]) -> Float[Array, ""]:
    """Returns the mean absolute error of the vertical and horizontal differences of neighboring pixels."""
    error = reconstructions - images
    vertical, horizontal = error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1]
    return jnp.mean(jnp.abs(vertical)) + jnp.mean(jnp.abs(horizontal))
