"""Small understanding encoder for pictures of 64 pixels with short captions.

It trains on a CPU in minutes. An image has 16 patches.

    janus-train --config siglip_small --workdir runs/siglip --config.tokenizer=TOKENIZER \\
        --config.data.directories="('prepared/pictures',)"

docs/training.md trains a whole model from pictures with this recipe, vq_small and janus_small.
"""

from ml_collections import ConfigDict

from janus_jax.config import SiglipConfig
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.siglip import CaptionedImages, SiglipRecipe


def get_config() -> ConfigDict:
    """Returns the recipe."""
    recipe = SiglipRecipe(
        encoder=SiglipConfig(image_size=64, patch_size=16, width=128, depth=2, num_heads=4, mlp_dim=512),
        data=CaptionedImages(workers=1),
        vocab_size=512,
        caption_length=16,
        steps=120,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=20, muon_learning_rate=0.02),
        save_every=60,
    )
    return to_config(recipe)
