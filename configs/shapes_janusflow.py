"""A small JanusFlow for the embedded shapes world, from nothing, in its paper's three stages.

    python -m launch.shapes --model janusflow --budget 25min --workdir runs/shapes_janusflow

makes data and understanding encoder, and runs these stages on them. To run one of them alone:

    python -m launch.train --config configs/shapes_janusflow.py --config.stage=2 --workdir DIR

Expected: see docs/shapes.md.

Where it is not the paper's: the flow moves in pixels, 8 by 8 of them a place, for no VAE of pictures of 48 is worth its
training; and as in the small Janus (configs/shapes_janus.py) there is no LLM to start from, so stage I teaches one to
answer and stage II to draw single things too, the understanding encoder stays as it is, and rows are few and short, for
two cores.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from configs import shapes_janus
from configs.shapes_janus import ENCODER
from janus_jax.config import JanusFlowConfig, UViTConfig
from janus_jax.data.mixture import Phase
from janus_jax.train.config_dicts import to_config
from janus_jax.train.flow import FlowLearning
from janus_jax.train.recipe import (
    FLOW_ALL_BUT_ENCODER,
    RANDOM,
    Initialisation,
)

__all__ = ["ENCODER", "MODEL", "RECIPE", "get_config"]

MODEL = JanusFlowConfig(
    name="janusflow_shapes",
    und_encoder=shapes_janus.MODEL.und_encoder,
    gen_encoder=UViTConfig(latent_size=48, latent_channels=3, patch_size=8, width=192, kernel_size=3, mlp_ratio=2),
    vae=None,
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
    # A row gives one time of each of its images, where ids would give all of theirs: more of it is drawing.
    phases=(Phase(None, {"understanding": 3, "places": 1, "text": 0.3, "generation": 6, "numbers": 3}),),
)

RECIPE = replace(
    shapes_janus.RECIPE,
    model=MODEL.name,
    architecture=MODEL,
    stages=(STAGE_1, STAGE_2, STAGE_3),
    known_ids=False,
    # What is drawn, and in which colour, is settled near the noise: a thing is many pixels, whose mean stands out of it
    # at a tenth of the way. Times about the middle of it, as the paper draws them of latents, leave colours unlearnt.
    flow=FlowLearning(time_mean=-1.5, time_std=1.5, align_block=2, align_width=256),
)


def get_config() -> ConfigDict:
    """The recipe, as flags see it."""
    return to_config(RECIPE)
