"""Janus-Pro-1B in the three stages of its paper (arXiv 2501.17811, §2.2 and table 2).

    janus-train --config janus_pro_1b --workdir DIR --config.stage=1 \\
        --config.stages.stage_1.initialisation.llm=LLM --config.stages.stage_1.initialisation.und_encoder=SIGLIP \\
        --config.stages.stage_1.initialisation.gen_encoder=VQ \\
        --config.sources.understanding.directory=UND --config.sources.imagenet.directory=IMAGENET

Stages 2 and 3 use the same command with `--config.stage=2` and 3. Each starts from the previous stage in DIR and reads
`understanding`, `text` and `generation`.

Expected after stage III (published): POPE 86.2, MME-P 1444.0, MMBench 75.5, SEED 68.3, GQA 59.3, MMMU 36.3; GenEval
0.73; DPG-Bench 82.63. The authors trained for 9 days on 128 A100-40G.

The paper does not state these choices: whether stage I trains `gen_embed` (here: yes), whether a batch size counts
packed sequences or examples (here: sequences), the crop of target images, and the packing budgets, which only affect
how much padding a sequence contains. Stage II stops at 270,000 of 360,000 steps.
"""

from ml_collections import ConfigDict

from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packing import Budget
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import SAMPLES, SOURCES, Recipe
from janus_jax.training.stage_config import Initialisation, Stage
from janus_jax.training.trained_params import ADAPTORS_AND_HEAD, ALL_BUT_ENCODERS, ALL_BUT_TOKENIZER

STAGE_1 = Stage(
    trained=ADAPTORS_AND_HEAD,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=600),
    steps=20_000,
    batch_size=256,
    phases=(Phase(None, {"understanding": 1, "imagenet": 3}),),
    budget=Budget(und_images=3, gen_images=6, text_targets=2048),
    initialisation=Initialisation("parts"),
)

STAGE_2 = Stage(
    trained=ALL_BUT_ENCODERS,
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=5_000),
    steps=360_000,
    stop_at=270_000,
    batch_size=512,
    phases=(Phase(None, {"understanding": 2, "text": 3, "generation": 5}),),
    budget=Budget(und_images=3, gen_images=5, text_targets=4096),
)

STAGE_3 = Stage(
    trained=ALL_BUT_TOKENIZER,
    optimizer=OptimizerConfig(learning_rate=4e-5),
    steps=80_000,
    batch_size=128,
    phases=(Phase(None, {"understanding": 5, "text": 1, "generation": 4}),),
    supervision=Supervision.ANSWERS,
    budget=Budget(und_images=4, gen_images=5, text_targets=2048),
)


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return to_config(Recipe(model="janus_pro_1b", stages=(STAGE_1, STAGE_2, STAGE_3), sources=SOURCES, samples=SAMPLES))
