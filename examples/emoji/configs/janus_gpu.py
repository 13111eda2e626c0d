"""Janus for emoji on one GPU: a larger model, larger batches and more steps than `janus.py`.

python -m examples.emoji.train --workdir runs/emoji_gpu --budget gpu
"""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.emoji.configs import janus
from examples.emoji.configs.tokenizer_gpu import RECIPE as TOKENIZER
from janus_jax.training.config_dicts import to_config
from janus_jax.training.recipe import Intervals, Resources
from janus_jax.training.stage_config import Stage

MODEL = replace(
    janus.MODEL,
    name="janus_emoji_gpu",
    und_encoder=replace(janus.MODEL.und_encoder, width=384, depth=8, num_heads=6, mlp_dim=1536),
    gen_encoder=TOKENIZER.model,
    llm=replace(janus.MODEL.llm, width=512, depth=8, num_heads=8, num_kv_heads=8, mlp_dim=1408),
    gen_head_width=512,
)


def _enlarge(stage: Stage, steps: int) -> Stage:
    return replace(
        stage,
        steps=steps,
        batch_size=64,
        optimizer=replace(stage.optimizer, warmup_steps=200),
        budget=replace(stage.budget, tokens=320),
        ema_decay=0.999,
    )


RECIPE = replace(
    janus.RECIPE,
    architecture=MODEL,
    stages=tuple(map(_enlarge, janus.RECIPE.stages, (2_000, 2_000, 20_000))),
    intervals=Intervals(report=100, evaluate=0, sample=0, save=1_000),
    resources=Resources(remat="none", data_workers=4, data_threads=4),
)


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
