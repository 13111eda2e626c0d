"""Small VQ image tokenizer for a few hundred pictures of 64 pixels.

It trains on a CPU in minutes. An image has 64 tokens.

    janus-train --config vq_small --workdir runs/vq --config.data.directories="('prepared/pictures',)"

docs/training.md trains a whole model from pictures with this recipe, siglip_small and janus_small.
"""

from ml_collections import ConfigDict

from janus_jax.config import VQConfig
from janus_jax.training.config_dicts import to_config
from janus_jax.training.image_tokenizer.recipe import CodebookRecipe, ImageData, Intervals, VQLossWeights, VQRecipe
from janus_jax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
    """Returns the recipe."""
    recipe = VQRecipe(
        model=VQConfig(
            image_size=64,
            codebook_size=512,
            base_channels=8,
            channel_multipliers=(1, 2, 4, 8),
            num_res_blocks=1,
            z_channels=64,
            norm_groups=8,
        ),
        steps=500,
        batch_size=16,
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=20, muon_learning_rate=0.02),
        # Adversarial training needs far more pictures and steps.
        losses=VQLossWeights(l1=0.2, perceptual=0.0, adversarial=0.0),
        # Trains in fewer steps than the gradient: the codes follow the latents, and unused codes restart.
        codebook=CodebookRecipe(update="moving_average", decay=0.95, kmeans_images=256, reseed_below=0.05),
        data=ImageData(workers=1),
        intervals=Intervals(report=50, evaluate=200, save=200),
        ema_decay=0.98,
    )
    return to_config(recipe)
