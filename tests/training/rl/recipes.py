"""A recipe of policy optimization with the tiny model, and its prompts and rewards. `get_config` is for commands."""

from dataclasses import replace

import numpy as np

from janus_jax.rewards import RewardConfig
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import Intervals, Recipe, Resources
from janus_jax.training.rl.config import FlowSteps, PolicyLoss, PolicyOptimization
from janus_jax.training.stage_config import Initialisation, Stage
from tests.training import runs

STEPS = 4
RL = PolicyOptimization(
    prompts="tests.training.rl.recipes:prompts",
    rewards=(RewardConfig("tests.training.rl.recipes:brightness"),),
    group_size=4,
    guidance_scale=2.0,
    loss=PolicyLoss(beta=0.1),
)
STAGE = replace(
    runs.STAGE,
    trained=("llm/*", "gen_head/*"),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    steps=STEPS,
    batch_size=16,
    phases=(),
    initialisation=Initialisation("model"),
    rl=RL,
)
FLOW = {
    "trained": ("llm/*", "gen_decoder/*"),
    "model": "flow",
    "flow": FlowSteps(rollout=3, evaluation=5, trained=2),
}
"""Settings of a recipe with the tiny JanusFlow."""


def prompts():
    """Seven prompts of different lengths."""
    return [{"prompt": "boat " * number + "lake.", "number": number} for number in range(7)]


def brightness(prompts, images, metadata):
    """Mean brightness of each image. Checks that prompts and metadata belong together."""
    assert [prompt.count("boat") for prompt in prompts] == [one["number"] for one in metadata]
    return np.asarray(images, np.float32).mean(axis=(1, 2, 3)) / 255


def recipe(model="model", tokenizer=None, **settings):
    """The recipe that starts from a model, by default the tiny one, with changed fields of `RL`, or of the stage.

    A model is the name of one of `runs.models`, or "" for none.
    """
    model = model and str(runs.models() / model)
    tokenizer = str(runs.data() / "tokenizer") if tokenizer is None else tokenizer
    rl = {name: settings.pop(name) for name in list(settings) if hasattr(RL, name)}
    start = Initialisation("model", model=model)
    stage: Stage = replace(STAGE, **{"initialisation": start, "rl": replace(RL, **rl), **settings})
    return Recipe(
        (stage,),
        {},
        tokenizer=tokenizer,
        resources=Resources(remat="none", data_workers=0),
        intervals=Intervals(report=1, evaluate=2, sample=2, save=2),
    )


def get_config():
    """Returns the recipe as a config, with two updates per step and rollouts in two parts. Flags name the folders."""
    return to_config(recipe("", "", minibatches=2, rollout_size=8, log_probs="guided"))
