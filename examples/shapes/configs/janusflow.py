"""A small JanusFlow for the embedded shapes world, from nothing, in its paper's three stages.

    python -m examples.shapes.train --model janusflow --budget 25min --workdir runs/shapes_janusflow

makes data and understanding encoder, and runs these stages on them. To run one of them alone:

    janus-train --config examples/shapes/configs/janusflow.py --config.stage=2 --workdir DIR

Expected: see docs/shapes.md.

Where it is not the paper's: the VAE is one of this world, whose latents are principal components of 8 by 8 pixels, a
place each; and as in the small Janus (examples/shapes/configs/janus.py) there is no LLM to start from, so stage I
teaches one to answer and stage II to draw single things too, the understanding encoder stays as it is, and rows are
few and short, for two cores.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.shapes.configs import janus as shapes_janus
from examples.shapes.configs.janus import ENCODER
from janus_jax.config import JanusFlowConfig, UViTConfig, VAEConfig
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.training.config_dicts import to_config
from janus_jax.training.image_tokenizer.recipe import PixelWeights
from janus_jax.training.image_tokenizer.vae import VAERecipe
from janus_jax.training.losses.rectified_flow import FlowLossConfig
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import FLOW_ALL_BUT_ENCODER, RANDOM, Initialisation

__all__ = ["ENCODER", "MODEL", "RECIPE", "get_config"]

VAE = VAERecipe(
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
    losses=PixelWeights(l1=0.2, colourful=4.0, edge=0.25),
)

MODEL = JanusFlowConfig(
    name="janusflow_shapes",
    und_encoder=shapes_janus.MODEL.und_encoder,
    gen_encoder=UViTConfig(latent_size=6, latent_channels=30, patch_size=1, width=192, kernel_size=3, mlp_ratio=1),
    vae=VAE.model,
    llm=shapes_janus.MODEL.llm,
    conversation=shapes_janus.MODEL.conversation,
)

STAGE_1 = replace(
    shapes_janus.STAGE_1,
    trained=("und_adaptor/*", "beg_of_und/*", "llm/*"),
    initialisation=Initialisation("parts", llm=RANDOM),
)

STAGE_2 = replace(shapes_janus.STAGE_2, trained=FLOW_ALL_BUT_ENCODER)

STAGE_3 = replace(
    shapes_janus.STAGE_3,
    trained=FLOW_ALL_BUT_ENCODER,
    steps=2200,
    # A row gives one time of each of its images, where ids would give all of theirs: more of it is drawing.
    phases=(
        Phase(
            None,
            {
                "understanding": 3,
                "places": 0.5,
                "sides": 0.5,
                "text": 0.2,
                "generation": 7,
                "numbers": 2,
                "imagenet": 1.5,
            },
        ),
    ),
)

RECIPE = replace(
    shapes_janus.RECIPE,
    model=MODEL.name,
    architecture=MODEL,
    stages=(STAGE_1, STAGE_2, STAGE_3),
    precomputed_image_tokens=False,
    # What is drawn, and in which colour, is settled within the first quarter of the way, where the paper's times, about
    # the middle of it, seldom are (docs/shapes.md).
    flow=FlowLossConfig(time_mean=-2.0, time_std=1.2, align_block=2, align_width=256),
)


def get_config() -> ConfigDict:
    """The recipe, as flags see it."""
    return to_config(RECIPE)
