"""Reinforcement learning of the small JanusFlow, with the detector of the shapes dataset as reward.

    janus-train --config examples/shapes/configs/flow_grpo.py --workdir DIR \\
        --config.stages.stage_1.initialisation.model=examples/shapes/models/JanusFlow-shapes

The prompts and the reward are those of the small Janus (`grpo.py`). Images are sampled with the guidance scale of the
evaluation. The noise level and the steps of rollouts are those of Flow-GRPO (arXiv 2505.05470). The transformer and the
flow are trained, without adapters. This recipe has not been run to its end.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.shapes.configs import grpo
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.rl.config import FlowSteps, PolicyLoss, PolicyOptimization

STAGE = replace(
    grpo.STAGE,
    trained=("llm/*", "gen_encoder/*", "gen_adaptor/*", "gen_decoder_adaptor/*", "gen_decoder/*"),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=5),
    steps=100,
    rl=PolicyOptimization(
        prompts=grpo.RL.prompts,
        held_out=grpo.RL.held_out,
        rewards=grpo.RL.rewards,
        group_size=8,
        guidance_scale=2.0,
        flow=FlowSteps(rollout=10, evaluation=30, noise_level=0.7),
        loss=PolicyLoss(beta=0.01),
        rollout_params="copied",
    ),
)

RECIPE = replace(grpo.RECIPE, stages=(STAGE,))


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
