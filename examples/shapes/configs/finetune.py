"""Teaches the small Janus of the shapes world a shape and a colour that it has never met, to see and to draw.

    janus-train --config examples/shapes/configs/finetune.py --workdir DIR \\
        --config.stages.stage_1.initialisation.model=Janus-shapes --config.sources.NAME.directory=...

`make demo` prepares the data and runs it. All but the encoders trains: the image tokenizer draws whatever the ids say,
and patches of new things differ to the understanding encoder as they are. Half of what it reads is old, so that the old
is not forgotten.

Expected: see docs/shapes.md; the demo's report says what came of it.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.shapes.configs import janus as shapes_janus
from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.processing import Task
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import Initialisation, Intervals, PreparedDataset

STAGE = replace(
    shapes_janus.STAGE_3,
    optimizer=OptimizerConfig(
        learning_rate=1e-3, schedule="cosine", warmup_steps=10, weight_decay=0.01, muon_learning_rate=0.01
    ),
    steps=400,
    phases=(Phase(None, {"new_understanding": 3, "new_generation": 6, "understanding": 4, "generation": 6}),),
    supervision=Supervision.ANSWERS,
    initialisation=Initialisation("model"),
    ema_decay=0.95,
)

RECIPE = replace(
    shapes_janus.RECIPE,
    stages=(STAGE,),
    sources={
        "new_understanding": PreparedDataset(task=Task.UNDERSTANDING),
        "new_generation": PreparedDataset(task=Task.GENERATION),
        "understanding": PreparedDataset(task=Task.UNDERSTANDING),
        "generation": PreparedDataset(task=Task.GENERATION),
    },
    intervals=Intervals(report=1, evaluate=0, sample=0, save=25),
)


def get_config() -> ConfigDict:
    """The recipe, as flags see it."""
    return to_config(RECIPE)
