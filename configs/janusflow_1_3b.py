"""JanusFlow-1.3B in the three stages of its paper (arXiv 2411.07975, §3.3 and table 1).

    janus-train --config janusflow_1_3b --workdir DIR --config.stage=1 \\
        --config.stages.stage_1.initialisation.llm=LLM --config.stages.stage_1.initialisation.und_encoder=SIGLIP \\
        --config.stages.stage_1.initialisation.vae=VAE \\
        --config.sources.understanding.directory=UND --config.sources.generation.directory=GEN

Stages 2 and 3 use the same command with `--config.stage=2` and 3. Each starts from the moving average of the previous
stage in DIR and also reads `text`. The moving average is exported.

Expected after stage III (published): POPE 88.0, MME-P 1333.1, MMBench 74.9, SEED 70.5, GQA 60.3, MMMU 29.3; GenEval
0.63; DPG-Bench 80.09; FID 9.51 on MJHQ-30K. The authors used 1,600 A100 days.

The paper does not state these choices: mean and standard deviation of the logit-normal times, the width of the
alignment MLP, whether stage I trains `beg_of_und` (here: yes), whether a batch size counts packed sequences or examples
(here: sequences), and the packing budgets, which only affect how much padding a sequence contains.
"""

from ml_collections import ConfigDict

from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packing import Budget
from janus_jax.training.config_dicts import to_config
from janus_jax.training.losses.rectified_flow import FlowLossConfig
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import SAMPLES, SOURCES, Recipe, Samples
from janus_jax.training.stage_config import Initialisation, Stage
from janus_jax.training.trained_params import FLOW_ALL_BUT_ENCODER, FLOW_ALL_BUT_VAE, LINEAR_LAYERS_AND_FLOW

EMA = 0.99

STAGE_1 = Stage(
    trained=LINEAR_LAYERS_AND_FLOW,
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=2_000),
    steps=10_000,
    batch_size=512,
    phases=(Phase(None, {"understanding": 50, "text": 0, "generation": 50}),),
    random_crop=True,
    budget=Budget(und_images=4, gen_images=4, text_targets=2048),
    initialisation=Initialisation("parts"),
    ema_decay=EMA,
)

STAGE_2 = Stage(
    trained=FLOW_ALL_BUT_ENCODER,
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=2_000),
    steps=390_000,
    batch_size=512,
    phases=(
        Phase(10_000, {"understanding": 30, "text": 20, "generation": 50}),
        Phase(None, {"understanding": 14, "text": 6, "generation": 80}),
    ),
    random_crop=True,
    budget=Budget(und_images=3, gen_images=6, text_targets=4096),
    ema_decay=EMA,
)

STAGE_3 = Stage(
    trained=FLOW_ALL_BUT_VAE,
    optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=1_000),
    steps=26_000,
    batch_size=256,
    phases=(Phase(None, {"understanding": 21, "text": 9, "generation": 70}),),
    supervision=Supervision.ANSWERS,
    random_crop=True,
    budget=Budget(und_images=4, gen_images=6, text_targets=2048),
    ema_decay=EMA,
)


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return to_config(
        Recipe(
            model="janusflow_1.3b",
            stages=(STAGE_1, STAGE_2, STAGE_3),
            sources={name: SOURCES[name] for name in ("understanding", "text", "generation")},
            samples=Samples(prompts=SAMPLES.prompts, guidance_scale=2.0),
            flow=FlowLossConfig(),
        )
    )
