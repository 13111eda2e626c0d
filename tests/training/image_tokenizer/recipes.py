"""A tokenizer that is trained in seconds, and the recipe for it."""

from dataclasses import replace

from janus_jax.config import VQConfig
from janus_jax.training.image_tokenizer.recipe import (
    Architecture,
    CodebookRecipe,
    Data,
    Intervals,
    LossWeights,
    TokenizerRecipe,
)
from janus_jax.training.optimizers import OptimizerConfig

MODEL = VQConfig(
    image_size=24,
    codebook_size=16,
    code_dim=4,
    base_channels=4,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    z_channels=8,
    norm_groups=2,
)
ADAM = OptimizerConfig(learning_rate=1e-3)
RECIPE = TokenizerRecipe(
    model=MODEL,
    steps=4,
    batch_size=8,
    optimizer=ADAM,
    discriminator_optimizer=ADAM,
    data=Data(world=32),
    losses=LossWeights(perceptual=0.0, adversarial_start=2),
    codebook=CodebookRecipe(decay=0.5),
    architecture=Architecture(discriminator_channels=4, discriminator_downsamplings=1),
    intervals=Intervals(report=1, evaluate=0, save=2, eval_images=8),
    ema_decay=0.5,
)
KEPT_IN_USE = replace(
    RECIPE,
    losses=replace(RECIPE.losses, adversarial=0.0),
    codebook=CodebookRecipe(update="moving_average", decay=0.5, kmeans_images=16, reseed_below=0.1),
    architecture=replace(RECIPE.architecture, encoder_reach="patch"),
)
