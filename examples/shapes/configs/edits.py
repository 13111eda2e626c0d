"""Continues stage 3 of the small Janus with edits and with conversations in which it generates images.

    janus-train --config examples/shapes/configs/edits.py --config.stage=1 --workdir DIR \\
        --config.stages.stage_1.initialisation.model=Janus-shapes --config.sources.NAME.directory=...

The README of this example has the commands for the data and both stages, and the results. The other tasks are trained
too, so that the model does not forget them. In stage 1 they are rare, because edits take long to learn; in stage 2 they
are as frequent as edits. A source image is written as features of the understanding encoder, with which the model finds
the object to change, and as image tokens, from which it copies all others.
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

STAGE_1 = replace(
    janus.STAGE_3,
    optimizer=OptimizerConfig(
        learning_rate=6e-4, schedule="cosine", warmup_steps=20, weight_decay=0.01, muon_learning_rate=0.01
    ),
    steps=5000,
    phases=(
        Phase(
            None,
            {
                "editing": 9,
                "hard_edits": 9,
                "conversations": 6,
                "understanding": 2.5,
                "positions": 0.8,
                "relations": 1.4,
                "text": 0.2,
                "generation": 2.7,
                "hard_prompts": 1.5,
            },
        ),
    ),
    # Source images are seldom dropped, because the image tokenizer's codes cannot be copied from features.
    editing=Editing(style="janus_4o", drop_source=0.05, interleaved_features=True),
    budget=replace(janus.STAGE_3.budget, context_images=4),
    initialisation=Initialisation("model"),
)

STAGE_2 = replace(
    STAGE_1,
    optimizer=replace(STAGE_1.optimizer, learning_rate=2.5e-4, muon_learning_rate=0.004),
    steps=1500,
    phases=(
        Phase(
            None,
            {
                "editing": 5,
                "hard_edits": 5,
                "conversations": 8,
                "understanding": 9,
                "positions": 1,
                "relations": 1.5,
                "text": 0.2,
                "generation": 4,
                "hard_prompts": 2.5,
            },
        ),
    ),
    initialisation=Initialisation(),
)

RECIPE = replace(
    janus.RECIPE,
    stages=(STAGE_1, STAGE_2),
    sources={
        **janus.RECIPE.sources,
        "editing": PreparedDataset(task=Task.EDITING),
        "hard_edits": PreparedDataset(task=Task.EDITING),
        "conversations": PreparedDataset(task=Task.INTERLEAVED),
    },
)


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
