"""Trains the image tokenizers of this example: a VQ tokenizer for Janus and a VAE for JanusFlow."""

from pathlib import Path

import jax.numpy as jnp
from jaxtyping import Array, Float

from examples.shapes.dataset import sample_images
from examples.shapes.tokenizer_metrics import reconstruction_metrics
from janus_jax.training.image_tokenizer.losses import edge_loss
from janus_jax.training.image_tokenizer.recipe import LossWeights, VAERecipe, VQRecipe
from janus_jax.training.image_tokenizer.task import Extensions, train_tokenizer

_COLOR_WEIGHT = 4.0
_EVAL_SEED = 1 << 20


def train(recipe: VQRecipe | VAERecipe, workdir: Path, *, num_images: int = 4096) -> Path:
    """Trains an image tokenizer on images of random scenes.

    Returns:
      The folder of the tokenizer, `WORKDIR/tokenizer`.
    """
    size = recipe.image_size
    images = sample_images(recipe.seed, num_images, size)
    extensions = Extensions(
        images=images,
        eval_images=sample_images(recipe.seed + _EVAL_SEED, recipe.intervals.eval_images, size),
        pixel_losses=pixel_losses,
        metrics=reconstruction_metrics,
    )
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
        "edge": weights.edge * edge_loss(images, reconstructions),
    }
