"""Janus-Pro-7B: Janus-Pro-1B's recipe with half the steps of stage III (arXiv 2501.17811, §2.2 and table 2).

    python -m launch.train --config configs/janus_pro_7b.py --workdir DIR --config.stage=1 \\
        --config.stages.stage_1.initialisation.llm=LLM --config.stages.stage_1.initialisation.und_encoder=SIGLIP \\
        --config.stages.stage_1.initialisation.gen_encoder=VQ \\
        --config.sources.understanding.directory=UND --config.sources.imagenet.directory=IMAGENET

and the same with `--config.stage=2`, then 3, as for the 1B.

Expected after stage III (as published): POPE 87.4, MME-P 1567.1, MMBench 79.2, SEED 72.1, GQA 62.0,
MMMU 41.0, MM-Vet 50.0; GenEval 0.80; DPG-Bench 84.19. It took the authors 14 days on 256 A100-40G.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.janus_pro_1b import STAGE_1, STAGE_2, STAGE_3
from janus_jax.training.config_dicts import to_config
from janus_jax.training.recipe import SAMPLES, SOURCES, Recipe

STAGES = (STAGE_1, STAGE_2, dataclasses.replace(STAGE_3, steps=40_000))


def get_config() -> ConfigDict:
    """The recipe, as flags see it."""
    return to_config(Recipe(model="janus_pro_7b", stages=STAGES, sources=SOURCES, samples=SAMPLES))
