"""Reinforcement learning of the small Janus, with the detector of the shapes dataset as reward.

    janus-train --config examples/shapes/configs/grpo.py --workdir DIR \\
        --config.stages.stage_1.initialisation.model=examples/shapes/models/Janus-shapes

docs/reinforcement_learning.md has the results. The prompts ask for combinations that occur in training. Images are
sampled with the guidance scale and temperature of the evaluation, and the log-probabilities are those of this
distribution.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.shapes.configs import janus
from janus_jax.rewards import RewardConfig
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import Intervals, Recipe
from janus_jax.training.rl.config import PolicyLoss, PolicyOptimization
from janus_jax.training.stage_config import Initialisation, Stage

RL = PolicyOptimization(
    prompts="examples.shapes.rewards:training_prompts",
    held_out="examples.shapes.rewards:held_out_prompts",
    rewards=(RewardConfig("examples.shapes.rewards:shapes"),),
    group_size=8,
    guidance_scale=2.0,
    temperature=0.7,
    log_probs="guided",
    loss=PolicyLoss(beta=0.01),
    rollout_params="copied",
)

STAGE = Stage(
    trained=("llm/*", "gen_adaptor/*", "gen_head/*"),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=5),
    steps=20,
    batch_size=128,
    phases=(),
    precision=janus.STAGE_1.precision,
    initialisation=Initialisation("model"),
    rl=RL,
)

RECIPE = Recipe(
    (STAGE,),
    {},
    intervals=Intervals(report=1, evaluate=10, sample=10, save=10),
    resources=replace(janus.RECIPE.resources, microbatches=2),
)


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
