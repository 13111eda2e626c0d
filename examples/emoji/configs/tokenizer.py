"""Image tokenizer for emoji."""

from ml_collections import ConfigDict

from janus_jax.config import VQConfig
from janus_jax.training.config_dicts import to_config
from janus_jax.training.image_tokenizer.recipe import CodebookRecipe, ImageData, Intervals, VQLossWeights, VQRecipe
from janus_jax.training.optimizers import OptimizerConfig

RECIPE = VQRecipe(
    model=VQConfig(
        image_size=48,
        codebook_size=2048,
        code_dim=32,
        base_channels=8,
        channel_multipliers=(1, 4, 4, 8),
        num_res_blocks=1,
        z_channels=64,
        norm_groups=2,
    ),
    steps=1000,
    batch_size=16,
    optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=20, muon_learning_rate=0.02),
    pca_images=1024,
    trained=("decoder/*", "post_quant_conv/*", "codebook/*"),
    losses=VQLossWeights(l1=0.2, edge=0.25, perceptual=0.0, commitment=0.1, adversarial=0.0),
    codebook=CodebookRecipe(update="moving_average", decay=0.99, kmeans_images=1024),
    data=ImageData(flip=False, workers=0),
    intervals=Intervals(report=50, evaluate=200, save=200, eval_images=256),
    ema_decay=0.98,
)


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
