"""LoRA fine-tuning of a model on your images with conversations, captions, or both.

    janus-train --config finetune --workdir DIR --config.stages.stage_1.initialisation.model=Janus-Pro-1B \\
        --config.sources.understanding.directory=UND --config.sources.generation.directory=GEN

If you have no conversations, set the weight of `understanding` in `phases` to 0; if you have no captions, that of
`generation`. docs/training.md has a full walkthrough.

The model is that of the folder: Janus, Janus-Pro or JanusFlow, of any size. JanusFlow trains without the alignment of
its paper, because model folders do not contain its MLP.

Expected: the exported model differs from the initial model only in the matrices with LoRA. With held-out data, the
held-out loss shows when further steps no longer help.
"""

from ml_collections import ConfigDict

from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packing import Budget
from janus_jax.training.config_dicts import to_config
from janus_jax.training.lora import Lora
from janus_jax.training.losses.rectified_flow import FlowLossConfig
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import SOURCES, Intervals, Recipe
from janus_jax.training.stage_config import Initialisation, Stage

STAGE = Stage(
    trained=(),
    lora=Lora(rank=16),
    optimizer=OptimizerConfig(learning_rate=2e-4, schedule="cosine", warmup_steps=20),
    steps=1_000,
    batch_size=8,
    phases=(Phase(None, {"understanding": 1, "text": 0, "generation": 1}),),
    supervision=Supervision.ANSWERS,
    first_sentence=0.0,
    budget=Budget(tokens=2048, und_images=2, gen_images=2, text_targets=1024),
    initialisation=Initialisation("model"),
)


def get_config() -> ConfigDict:
    """Returns the recipe."""
    sources = {name: SOURCES[name] for name in ("understanding", "text", "generation")}
    # Model folders lack the MLP of JanusFlow's alignment, which would stay frozen at random values.
    flow = FlowLossConfig(align_weight=0.0)
    return to_config(Recipe((STAGE,), sources, intervals=Intervals(evaluate=100, save=200), flow=flow))
