"""Understanding encoder for emoji, trained from scratch on their names: 16 tokens per picture of 64x64 pixels.

    janus-train --config examples/emoji/configs/encoder.py --workdir runs/emoji/und_encoder \\
        --config.tokenizer=runs/emoji/data/text --config.data.directories="('runs/emoji/prepared/pictures',)" \\
        --config.data.eval_directories="('runs/emoji/prepared/held_out',)"

The retrieval that it reports is the fraction of held-out pictures whose name is the most similar one of all held-out
names.
"""

from ml_collections import ConfigDict

from examples.emoji.configs.janus import MODEL
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.siglip import CaptionedImages, SiglipRecipe

RECIPE = SiglipRecipe(
    encoder=MODEL.und_encoder,
    vocab_size=MODEL.llm.vocab_size,
    caption_length=24,
    steps=600,
    batch_size=128,
    optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=20, muon_learning_rate=0.02),
    data=CaptionedImages(workers=0),
    save_every=100,
    evaluate_every=100,
)


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
