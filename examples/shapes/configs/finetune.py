"""Fine-tunes the small Janus on a shape and a color that it has never seen, for understanding and generation.

    janus-train --config examples/shapes/configs/finetune.py --workdir DIR \\
        --config.stages.stage_1.initialisation.model=Janus-shapes --config.sources.NAME.directory=...

`make demo` prepares the data and runs this recipe. The encoders are frozen, because the image tokenizer already
reconstructs the new objects, and the understanding encoder distinguishes their patches. Half of the data is old, so
that the model does not forget the old words. The report of the demo contains the results.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.shapes.configs import janus
from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.processing import Task
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import Intervals, PreparedDataset
from janus_jax.training.stage_config import Initialisation

STAGE = replace(
    janus.STAGE_3,
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
    janus.RECIPE,
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
    """Returns the recipe as a config."""
    return to_config(RECIPE)
