"""Small Janus for the shapes dataset, trained from scratch in the papers' three stages.

    python -m examples.shapes.train --budget 25min --workdir runs/shapes

trains the tokenizers and the understanding encoder, prepares the data, and runs all stages. To run a single stage:

    janus-train --config examples/shapes/configs/janus.py --config.stage=2 --workdir DIR

The README of this example has the results and the reasons for the differences from the papers. There is no pretrained
LLM, so stage 1 trains one on answers, and stage 2 adds the generation of single objects. Questions have no loss, and
Muon is the optimizer. The embeddings and output weights of image tokens keep their initial values,
which come from the codebook, until stage 3. The understanding encoder is frozen in all stages. Sequences are few and
short, for two CPU cores.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.shapes.configs.tokenizer import RECIPE as TOKENIZER
from janus_jax.config import JanusConfig, LlamaConfig, SiglipConfig
from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packing import Budget
from janus_jax.processing import Task
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import SOURCES, Intervals, PreparedDataset, Recipe, Resources
from janus_jax.training.siglip import SiglipRecipe
from janus_jax.training.stage_config import RANDOM, Initialisation, Precision, Stage
from janus_jax.training.trained_params import ALL_BUT_ENCODERS

MODEL = JanusConfig(
    name="janus_shapes",
    und_encoder=SiglipConfig(image_size=48, patch_size=16, width=192, depth=2, num_heads=4, mlp_dim=768),
    gen_encoder=TOKENIZER.model,
    llm=LlamaConfig(
        vocab_size=512, width=192, depth=4, num_heads=4, num_kv_heads=4, head_dim=48, mlp_dim=512, max_positions=512
    ),
    gen_head_width=256,
)

ENCODER = SiglipRecipe(
    encoder=MODEL.und_encoder,
    vocab_size=MODEL.llm.vocab_size,
    caption_length=48,
    steps=400,
    patchwise=True,
    optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=20, muon_learning_rate=0.02),
)

_FLOAT32 = Precision("float32", "float32", "float32")
_BUDGET = Budget(tokens=224, und_images=4, gen_images=4, text_targets=150)

# With twice Muon's rate, the model did not learn to locate objects, and generation reduced understanding.
_OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=20, weight_decay=0.01, muon_learning_rate=0.01)

STAGE_1 = Stage(
    trained=("und_adaptor/*", "llm/*"),
    optimizer=_OPTIMIZER,
    steps=700,
    batch_size=16,
    # The model first learns positions from single objects, and then to find one object among others.
    phases=(
        Phase(300, {"understanding": 3, "single_objects": 1}),
        Phase(None, {"understanding": 3, "positions": 2}),
    ),
    supervision=Supervision.ANSWERS,
    budget=replace(_BUDGET, gen_images=0),
    precision=_FLOAT32,
    initialisation=Initialisation("parts", llm=RANDOM, image_tokens_from_codebook=True),
    ema_decay=0.98,
)

STAGE_2 = replace(
    STAGE_1,
    # All except the encoders and the embeddings and output weights of image tokens.
    trained=("und_adaptor/*", "gen_adaptor/*", "gen_head/fc1/*", "gen_head/fc2/bias", "llm/*"),
    steps=600,
    phases=(
        Phase(300, {"understanding": 3, "positions": 1, "imagenet": 4}),
        Phase(None, {"understanding": 3, "positions": 1, "imagenet": 8}),
    ),
    budget=_BUDGET,
    initialisation=Initialisation(),
)

STAGE_3 = replace(
    STAGE_2,
    trained=ALL_BUT_ENCODERS,
    optimizer=replace(_OPTIMIZER, learning_rate=6e-4, schedule="cosine"),
    steps=4000,
    phases=(
        Phase(
            None,
            {
                "understanding": 4,
                "positions": 1,
                "relations": 1.5,
                "text": 0.3,
                "generation": 5.5,
                "hard_prompts": 2.5,
            },
        ),
    ),
    ema_decay=0.99,
)

RECIPE = Recipe(
    architecture=MODEL,
    stages=(STAGE_1, STAGE_2, STAGE_3),
    sources={
        **SOURCES,
        "single_objects": PreparedDataset(task=Task.UNDERSTANDING),
        "positions": PreparedDataset(task=Task.UNDERSTANDING),
        "relations": PreparedDataset(task=Task.UNDERSTANDING),
        "hard_prompts": PreparedDataset(task=Task.GENERATION),
    },
    precomputed_image_tokens=True,
    intervals=Intervals(report=20, evaluate=0, sample=0, save=200),
    resources=Resources(remat="none", scan_unroll=4, data_workers=0, data_threads=2),
)


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
