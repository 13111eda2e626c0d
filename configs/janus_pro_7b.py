"""Janus-Pro-7B: the recipe of Janus-Pro-1B with half the steps in stage III (arXiv 2501.17811, §2.2 and table 2).

    janus-train --config janus_pro_7b --workdir DIR --config.stage=1 \\
        --config.stages.stage_1.initialisation.llm=LLM --config.stages.stage_1.initialisation.und_encoder=SIGLIP \\
        --config.stages.stage_1.initialisation.gen_encoder=VQ \\
        --config.sources.understanding.directory=UND --config.sources.imagenet.directory=IMAGENET

Stages 2 and 3 use the same command with `--config.stage=2` and 3. See janus_pro_1b.py for their data.

Expected after stage III (published): POPE 87.4, MME-P 1567.1, MMBench 79.2, SEED 72.1, GQA 62.0, MMMU 41.0, MM-Vet
50.0; GenEval 0.80; DPG-Bench 84.19. The authors trained for 14 days on 256 A100-40G.
"""

from ml_collections import ConfigDict

from janus_jax import load_recipe


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = load_recipe("janus_pro_1b")
    config.model = "janus_pro_7b"
    config.stages.stage_3.steps = 40_000
    return config
