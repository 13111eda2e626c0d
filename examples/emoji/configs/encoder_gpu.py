"""Understanding encoder for emoji on one GPU."""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.emoji.configs import encoder
from examples.emoji.configs.janus_gpu import MODEL
from janus_jax.training.config_dicts import to_config

RECIPE = replace(
    encoder.RECIPE,
    encoder=MODEL.und_encoder,
    steps=5_000,
    batch_size=512,
    optimizer=replace(encoder.RECIPE.optimizer, warmup_steps=200),
    data=replace(encoder.RECIPE.data, workers=4),
    save_every=500,
    evaluate_every=500,
)


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
