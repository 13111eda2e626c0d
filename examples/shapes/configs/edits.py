"""Continues stage 3 of the small Janus with edits and with conversations in which it generates images.

    janus-train --config examples/shapes/configs/edits.py --workdir DIR \\
        --config.stages.stage_1.initialisation.model=Janus-shapes --config.sources.NAME.directory=...

The README of this example has the command that prepares the data, and the results. The other tasks are trained too, so
that the model does not forget them. A source image is written as features of the understanding encoder, with which the
model finds the object to change, and as image tokens, from which it copies all others.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.shapes.configs import janus
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.processing import Task
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import PreparedDataset
from janus_jax.training.stage_config import Editing, Initialisation

STAGE = replace(
    janus.STAGE_3,
    optimizer=OptimizerConfig(
        learning_rate=6e-4, schedule="cosine", warmup_steps=20, weight_decay=0.01, muon_learning_rate=0.01
    ),
    steps=1900,
    phases=(
        Phase(
            None,
            {
                "editing": 16,
                "conversations": 6,
                "understanding": 2,
                "positions": 0.6,
                "relations": 1.2,
                "text": 0.2,
                "generation": 2.5,
                "hard_prompts": 1.2,
            },
        ),
    ),
    # Source images are seldom dropped, because the image tokenizer's codes cannot be copied from features.
    editing=Editing(style="janus_4o", drop_source=0.05, interleaved_features=True),
    budget=replace(janus.STAGE_3.budget, context_images=4),
    initialisation=Initialisation("model"),
)

RECIPE = replace(
    janus.RECIPE,
    stages=(STAGE,),
    sources={
        **janus.RECIPE.sources,
        "editing": PreparedDataset(task=Task.EDITING),
        "conversations": PreparedDataset(task=Task.INTERLEAVED),
    },
)


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
