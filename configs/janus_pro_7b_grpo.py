"""Reinforcement learning on image generation with Janus-Pro-7B: GRPO with the settings of T2I-R1.

    janus-train --config janus_pro_7b_grpo --workdir DIR \\
        --config.stages.stage_1.initialisation.model=Janus-Pro-7B \\
        --config.stages.stage_1.rl.prompts=prompts.jsonl \\
        --config.stages.stage_1.rl.rewards.reward_1.name=http \\
        --config.stages.stage_1.rl.rewards.reward_1.options="('urls=http://HOST:8000',)"

docs/reinforcement_learning.md describes prompts, rewards and settings, and lists the settings of STAGE and others.

T2I-R1 trains the language model with groups of 8 images, 128 images and one update per step, for 1,600 steps with a
learning rate of 1e-6, a KL weight of 0.01, guidance 5 and temperature 1. Its log-probabilities are those of the
conditional sequence.

Expected (published, with the rewards HPSv2.1, GIT-VQA, GroundingDINO and ORM, summed): GenEval 0.78 before, 0.79 after;
T2I-CompBench 0.392 before, 0.528 after; WISE 0.35 before, 0.54 after.

T2I-R1 writes a text before each image, which this recipe does not. Its reference reads the prompt embeddings of the
trained model, and its prompts have padding before begin-of-image; here the reference has its own embeddings, and
padding does not change log-probabilities. The betas of Adam and its schedule are PyTorch's defaults and constant.
"""

from ml_collections import ConfigDict

from janus_jax import load_recipe


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = load_recipe("janus_pro_1b_grpo")
    stage = config.stages.stage_1
    stage.optimizer.learning_rate = 1e-6
    stage.batch_size = 128
    stage.rl.group_size = 8
    return config
