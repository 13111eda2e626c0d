"""Image tokenizer for emoji on one GPU: 64 tokens per picture of 64x64 pixels. The encoder is trained, too."""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.emoji.configs import tokenizer
from janus_jax.training.config_dicts import to_config
from janus_jax.training.image_tokenizer.recipe import ImageData

RECIPE = replace(
    tokenizer.RECIPE,
    model=replace(
        tokenizer.RECIPE.model,
        image_size=64,
        codebook_size=4096,
        base_channels=32,
        channel_multipliers=(1, 2, 4, 8),
        num_res_blocks=2,
        z_channels=128,
    ),
    trained=("*",),
    steps=20_000,
    batch_size=64,
    optimizer=replace(tokenizer.RECIPE.optimizer, warmup_steps=200),
    codebook=replace(tokenizer.RECIPE.codebook, reseed_below=0.05),
    data=ImageData(flip=False, workers=4),
    intervals=replace(tokenizer.RECIPE.intervals, report=100, evaluate=2_000, save=1_000),
    ema_decay=0.999,
)


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
