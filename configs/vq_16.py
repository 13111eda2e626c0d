"""VQ-16, the image tokenizer of Janus and Janus-Pro, as LlamaGen trained it (arXiv 2406.06525, §2.1 and §3.1).

    janus-prepare --source tfds --input imagenet2012 --output prepared/imagenet
    janus-prepare --source tfds --input imagenet2012 --input_split validation --output prepared/validation
    janus-train --config vq_16 --workdir runs/vq_16 --config.data.directories="('prepared/imagenet',)" \\
        --config.data.eval_directories="('prepared/validation',)" \\
        --config.networks.vgg16=VGG16 --config.networks.lpips=LPIPS --config.networks.inception=INCEPTION

docs/tokenizer.md names the weight files. LPIPS and rFID are left out if their files are not given.

Expected after 40 epochs of ImageNet at 256x256 (published): rFID 2.19 (0.94 at 384x384), 97% of the codes in use. The
paper does not state these choices: the decay of the moving average of the weights, the discriminator's optimizer (here
the tokenizer's), a constant learning rate without warm-up, and no weight decay.
"""

from ml_collections import ConfigDict

from janus_jax.config import VQConfig
from janus_jax.training.config_dicts import to_config
from janus_jax.training.image_tokenizer.recipe import DiscriminatorRecipe, Intervals, VQRecipe
from janus_jax.training.optimizers import OptimizerConfig

_IMAGES = 1_281_167
_EPOCHS = 40
_BATCH = 128


def get_config() -> ConfigDict:
    """Returns the recipe."""
    adam = OptimizerConfig(learning_rate=1e-4, b1=0.9, b2=0.95, clip_norm=1.0)
    recipe = VQRecipe(
        # A tokenizer trained at 256x256 accepts any size; Janus uses it at 384x384.
        model=VQConfig(image_size=256),
        steps=_EPOCHS * _IMAGES // _BATCH,
        batch_size=_BATCH,
        optimizer=adam,
        discriminator=DiscriminatorRecipe(adam),
        # The other defaults of `VQRecipe` are those of this recipe.
        intervals=Intervals(report=100, evaluate=5000, save=5000, eval_images=5000),
    )
    return to_config(recipe)
