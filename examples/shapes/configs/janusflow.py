"""Small JanusFlow for the shapes dataset, trained from scratch in its paper's three stages.

    python -m examples.shapes.train --model janusflow --budget 25min --workdir runs/shapes_janusflow

trains the VAE and the understanding encoder, prepares the data, and runs all stages. To run a single stage:

    janus-train --config examples/shapes/configs/janusflow.py --config.stage=2 --workdir DIR

The README of this example has the results and the reasons for the differences from the paper. The VAE is specific to
this dataset: its latents are principal components of 8x8 patches. Everything else follows the small Janus (`janus.py`).
"""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.shapes.configs import janus
from examples.shapes.configs.janus import ENCODER
from janus_jax.config import JanusFlowConfig, UViTConfig, VAEConfig
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.training.config_dicts import to_config
from janus_jax.training.image_tokenizer.recipe import Intervals, VAELossWeights, VAERecipe
from janus_jax.training.losses.rectified_flow import FlowLossConfig
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.stage_config import RANDOM, Initialisation
from janus_jax.training.trained_params import FLOW_ALL_BUT_ENCODER

__all__ = ["ENCODER", "MODEL", "RECIPE", "TOKENIZER", "get_config"]

TOKENIZER = VAERecipe(
    model=VAEConfig(
        latent_channels=30,
        base_channels=8,
        channel_multipliers=(1, 4, 4, 8),
        num_res_blocks=1,
        norm_groups=2,
        scaling_factor=1.0,
    ),
    image_size=48,
    steps=900,
    batch_size=16,
    optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=20, muon_learning_rate=0.02),
    trained=("decoder/*", "post_quant_conv/*"),
    pca_images=1024,
    losses=VAELossWeights(l1=0.2, edge=0.25, perceptual=0.0, kl=0.0),
    intervals=Intervals(report=50, evaluate=0, save=500, eval_images=256),
    ema_decay=0.98,
)

MODEL = JanusFlowConfig(
    name="janusflow_shapes",
    und_encoder=janus.MODEL.und_encoder,
    gen_encoder=UViTConfig(latent_size=6, latent_channels=30, patch_size=1, width=192, kernel_size=3, mlp_ratio=1),
    vae=TOKENIZER.model,
    llm=janus.MODEL.llm,
    conversation=janus.MODEL.conversation,
)

STAGE_1 = replace(
    janus.STAGE_1,
    trained=("und_adaptor/*", "beg_of_und/*", "llm/*"),
    initialisation=Initialisation("parts", llm=RANDOM),
)

STAGE_2 = replace(janus.STAGE_2, trained=FLOW_ALL_BUT_ENCODER)

STAGE_3 = replace(
    janus.STAGE_3,
    trained=FLOW_ALL_BUT_ENCODER,
    steps=2200,
    # Generation has a larger weight than in Janus: an image trains the flow at one time only, but all tokens in Janus.
    phases=(
        Phase(
            None,
            {
                "understanding": 3,
                "positions": 0.5,
                "relations": 0.5,
                "text": 0.2,
                "generation": 7,
                "hard_prompts": 2,
                "imagenet": 1.5,
            },
        ),
    ),
)

RECIPE = replace(
    janus.RECIPE,
    architecture=MODEL,
    stages=(STAGE_1, STAGE_2, STAGE_3),
    precomputed_image_tokens=False,
    # Shapes and colors are decided in the first quarter of the flow. The paper's times, centered in the middle, rarely
    # train that part (see the README).
    flow=FlowLossConfig(time_mean=-2.0, time_std=1.2, align_block=2, align_width=256),
)


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
