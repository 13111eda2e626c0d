"""Janus-1.3B in the three stages of its paper (arXiv 2410.13848, §3.3 and table 1).

    janus-train --config janus_1_3b --workdir DIR --config.stage=1 \\
        --config.stages.stage_1.initialisation.llm=LLM --config.stages.stage_1.initialisation.und_encoder=SIGLIP \\
        --config.stages.stage_1.initialisation.gen_encoder=VQ \\
        --config.sources.understanding.directory=UND --config.sources.imagenet.directory=IMAGENET

Stages 2 and 3 use the same command with `--config.stage=2` and 3. Each starts from the previous stage in DIR and also
reads `text` and `generation`.

Expected after stage III (published): POPE 87.0, MME-P 1338.0, MMBench 69.4, SEED 63.7, GQA 59.1, MMMU 30.5; GenEval
0.61; FID 8.53 on COCO-30K, 10.10 on MJHQ-30K. The authors trained for 7 days on 128 A100-40G.

The paper does not state these choices: the cosine's floor, whether stage I trains `gen_embed` (here: yes), whether a
batch size counts packed sequences or examples (here: sequences), the crop of target images, and the packing budgets,
which only affect how much padding a sequence contains.
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
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", floor=0.0, warmup_steps=300),
    steps=10_000,
    batch_size=256,
    phases=(Phase(None, {"understanding": 1, "imagenet": 1}),),
    budget=Budget(und_images=4, gen_images=4, text_targets=2048),
    initialisation=Initialisation("parts"),
)

STAGE_2 = Stage(
    trained=ALL_BUT_ENCODERS,
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=5_000),
    steps=180_000,
    batch_size=512,
    phases=(
        Phase(120_000, {"understanding": 2, "text": 3, "imagenet": 5, "generation": 0}),
        Phase(None, {"understanding": 2, "text": 3, "imagenet": 0, "generation": 5}),
    ),
    budget=Budget(und_images=3, gen_images=5, text_targets=4096),
)

STAGE_3 = Stage(
    trained=ALL_BUT_TOKENIZER,
    optimizer=OptimizerConfig(learning_rate=2e-5, weight_decay=0.1),
    steps=24_000,
    batch_size=256,
    phases=(Phase(None, {"understanding": 7, "text": 3, "generation": 10}),),
    supervision=Supervision.ANSWERS,
    budget=Budget(und_images=4, gen_images=5, text_targets=2048),
)


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return to_config(Recipe(model="janus_1.3b", stages=(STAGE_1, STAGE_2, STAGE_3), sources=SOURCES, samples=SAMPLES))
