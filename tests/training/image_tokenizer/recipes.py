"""Recipes for tokenizers that train in seconds, and their images."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from janus_jax.config import VAEConfig, VQConfig
from janus_jax.training.image_tokenizer.recipe import (
    CodebookRecipe,
    DiscriminatorRecipe,
    Intervals,
    VAELossWeights,
    VAERecipe,
    VQLossWeights,
    VQRecipe,
)
from janus_jax.training.image_tokenizer.task import Extensions
from janus_jax.training.optimizers import OptimizerConfig

ADAM = OptimizerConfig(learning_rate=1e-3)
VQ = VQRecipe(
    model=VQConfig(
        image_size=24,
        codebook_size=16,
        code_dim=4,
        base_channels=4,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        z_channels=8,
        norm_groups=2,
    ),
    steps=4,
    batch_size=8,
    optimizer=ADAM,
    discriminator=DiscriminatorRecipe(ADAM, base_channels=4, num_downsamplings=1),
    losses=VQLossWeights(perceptual=0.0, adversarial_start=2),
    codebook=CodebookRecipe(decay=0.5),
    intervals=Intervals(report=1, evaluate=0, save=2, eval_images=8),
    ema_decay=0.5,
)
MOVING_AVERAGE = replace(
    VQ,
    trained=("decoder/*", "post_quant_conv/*", "codebook/*"),
    losses=replace(VQ.losses, adversarial=0.0),
    codebook=CodebookRecipe(update="moving_average", decay=0.5, kmeans_images=16, reseed_below=0.1),
)
VAE = VAERecipe(
    model=VAEConfig(latent_channels=2, base_channels=4, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=2),
    image_size=24,
    steps=4,
    batch_size=8,
    optimizer=ADAM,
    losses=VAELossWeights(perceptual=0.0),
    intervals=VQ.intervals,
    ema_decay=0.5,
)


def images(count, size=24, seed=0):
    """Returns images of 4x4 blocks with random colors, so that neighboring pixels are similar."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, size // 4, size // 4, 3), np.uint8)
    return blocks.repeat(4, axis=1).repeat(4, axis=2)


def encoded(image):
    """Returns an image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


DATA = Extensions(images=images(32), eval_images=images(8, seed=1))
