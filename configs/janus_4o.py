"""Janus-Pro-7B learns to edit images as Janus-4o (ShareGPT-4o-Image, arXiv 2506.18095): captions and edits together.

    janus-train --config janus_4o --workdir DIR --config.stages.stage_1.initialisation.model=Janus-Pro-7B \\
        --config.sources.generation.directory=GEN --config.sources.edits.directory=EDITS

GEN and EDITS are prepared from `text_to_image.json` (`--source captions`) and `text_and_image_to_image.json` (`--source
edits`) of ShareGPT-4o-Image, 45,700 and 46,500 records.

The hyperparameters are those of the published code, which trains three epochs in batches of 64 or 128 examples. Here a
batch has 32 packed sequences, about 96 examples. As in that code, SigLIP trains; to freeze it, remove "und_encoder/*"
from `trained`. The loss also has the first token of each target image, which that code leaves out. Target images of
captions are cropped to a square, those of edits are padded.

For the format and hyperparameters of Janus-Pro-R1-Edit (arXiv 2506.01480), add these flags. Its number of steps is not
published.

        --config.stages.stage_1.editing.style=janus_pro_r1_edit --config.stages.stage_1.optimizer.learning_rate=2e-5 \\
        --config.stages.stage_1.optimizer.floor=0 --config.stages.stage_1.optimizer.b2=0.95 \\
        --config.stages.stage_1.optimizer.weight_decay=0.05 \\
        --config.stages.stage_1.optimizer.no_decay="('*norm*', '*/bias')" \\
        --config.stages.stage_1.trained="('und_adaptor/*', 'gen_embed/*', 'gen_adaptor/*', 'gen_head/*', 'llm/*')"
"""

from ml_collections import ConfigDict

from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packing import Budget
from janus_jax.processing import Task
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import SAMPLES, PreparedDataset, Recipe
from janus_jax.training.stage_config import Editing, Initialisation, Stage
from janus_jax.training.trained_params import ALL_BUT_TOKENIZER

SOURCES = {"generation": PreparedDataset(task=Task.GENERATION), "edits": PreparedDataset(task=Task.EDITING)}

STAGE = Stage(
    trained=ALL_BUT_TOKENIZER,
    optimizer=OptimizerConfig(
        learning_rate=5e-6, schedule="cosine", floor=0.15, warmup_steps=144, weight_decay=0.1, b2=0.999
    ),
    steps=2_881,
    batch_size=32,
    phases=(Phase(None, {"generation": 45_700, "edits": 46_500}),),
    drop_condition=0.1,
    first_sentence=0.0,
    editing=Editing("janus_4o"),
    budget=Budget(und_images=2, gen_images=4, text_targets=0, context_images=2),
    initialisation=Initialisation("model"),
)


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return to_config(Recipe((STAGE,), SOURCES, model="janus_pro_7b", samples=SAMPLES))
