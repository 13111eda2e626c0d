"""Reinforcement learning on image generation with Janus-Pro-1B: GRPO with the settings of GCPO's baseline.

    janus-train --config janus_pro_1b_grpo --workdir DIR \\
        --config.stages.stage_1.initialisation.model=Janus-Pro-1B \\
        --config.stages.stage_1.rl.prompts=prompts.jsonl \\
        --config.stages.stage_1.rl.rewards.reward_1.name=http \\
        --config.stages.stage_1.rl.rewards.reward_1.options="('urls=http://HOST:8000',)"

docs/reinforcement_learning.md describes prompts, rewards and settings.

GCPO trains groups of 4 images, 32 images per step, for 1,600 steps with a learning rate of 3e-6 (reward: GenEval's
detector) or 1e-6 (HPS), a KL weight of 0.01, guidance 5 and temperature 1.

Expected with GenEval's detector (published): GenEval 0.73 before, 0.84 with GCPO.

The public code does not state these choices: the betas of Adam and its schedule (here: PyTorch's defaults, constant).
As in T2I-R1, the language model alone is trained.
"""

from ml_collections import ConfigDict

from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import SAMPLES, Intervals, Recipe
from janus_jax.training.rl.config import PolicyLoss, PolicyOptimization
from janus_jax.training.stage_config import Initialisation, Stage

STAGE = Stage(
    trained=("llm/*",),
    optimizer=OptimizerConfig(learning_rate=3e-6, b2=0.999),
    steps=1_600,
    batch_size=32,
    phases=(),
    initialisation=Initialisation("model"),
    rl=PolicyOptimization(group_size=4, loss=PolicyLoss(beta=0.01)),
)


def get_config() -> ConfigDict:
    """Returns the recipe."""
    intervals = Intervals(report=1, evaluate=100, sample=100, save=100)
    return to_config(Recipe((STAGE,), {}, samples=SAMPLES, intervals=intervals))
