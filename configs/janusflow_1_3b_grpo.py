"""Reinforcement learning on image generation with JanusFlow-1.3B: Flow-GRPO (arXiv 2505.05470).

    janus-train --config janusflow_1_3b_grpo --workdir DIR \\
        --config.stages.stage_1.initialisation.model=JanusFlow-1.3B \\
        --config.stages.stage_1.rl.prompts=prompts.jsonl \\
        --config.stages.stage_1.rl.rewards.reward_1.name=http \\
        --config.stages.stage_1.rl.rewards.reward_1.options="('urls=http://HOST:8000',)"

docs/reinforcement_learning.md describes prompts, rewards and settings.

The settings are those of Flow-GRPO for Stable Diffusion 3.5 Medium with GenEval's detector: adapters of rank 32 and
alpha 64 on the attention matrices, groups of 24 images, 48 groups and two updates per step, 10 steps in rollouts and 40
in evaluation, noise level 0.7, KL weight 0.04, clip range 1e-4, AdamW with a learning rate of 3e-4 and a decay of 1e-4.
The loss leaves out the last of the 10 steps. The guidance scale is that of JanusFlow, 2.

Published for Stable Diffusion 3.5 Medium: GenEval 0.63 before, 0.95 after. No such result is published for JanusFlow.

Differences from the public code: Advantages are divided by the standard deviation of their group (as in the paper), not
of all images of a step. The KL divergence is that of the paper; the public code leaves the length of a step out of its
variance, so that a weight of 0.04 there corresponds to 0.004 here. The adapters have no moving average. A run has 2,000
steps, because the public code runs until it is stopped. Microbatches and the size of rollouts are for 8 to 64 devices.
"""

from ml_collections import ConfigDict

from janus_jax.training.config_dicts import to_config
from janus_jax.training.lora import Lora
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import SAMPLES, Intervals, Recipe, Resources, Samples
from janus_jax.training.rl.config import FlowSteps, PolicyLoss, PolicyOptimization
from janus_jax.training.stage_config import Initialisation, Stage

STAGE = Stage(
    trained=(),
    lora=Lora(rank=32, alpha=64.0),
    optimizer=OptimizerConfig(learning_rate=3e-4, b2=0.999, weight_decay=1e-4),
    steps=2_000,
    batch_size=48 * 24,
    phases=(),
    initialisation=Initialisation("model"),
    rl=PolicyOptimization(
        group_size=24,
        guidance_scale=2.0,
        flow=FlowSteps(rollout=10, evaluation=40, noise_level=0.7, trained=9),
        loss=PolicyLoss(beta=0.04, clip=1e-4),
        minibatches=2,
        rollout_size=16 * 24,
    ),
)


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return to_config(
        Recipe(
            (STAGE,),
            {},
            samples=Samples(prompts=SAMPLES.prompts, guidance_scale=2.0),
            intervals=Intervals(report=1, evaluate=100, sample=100, save=100),
            resources=Resources(microbatches=9),
        )
    )
