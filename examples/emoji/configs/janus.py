"""Small Janus for emoji, trained from scratch in three stages.

    python -m examples.emoji.train --workdir runs/emoji --budget 60min

trains the image tokenizer and the understanding encoder, and runs all stages. To run a single stage:

    janus-train --config examples/emoji/configs/janus.py --config.stage=2 --workdir runs/emoji/janus \\
        --config.sources.understanding.directory=runs/emoji/prepared/questions ...

As in `configs/janus_small.py`, there is no language model to start from, so stage 1 trains one on answers, and the
encoders are frozen in all stages.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from examples.emoji.configs.tokenizer import RECIPE as TOKENIZER
from janus_jax.config import JanusConfig, LlamaConfig, SiglipConfig
from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packing import Budget
from janus_jax.training.config_dicts import to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import SOURCES, Intervals, Recipe, Resources
from janus_jax.training.stage_config import RANDOM, Initialisation, Stage
from janus_jax.training.trained_params import ALL_BUT_ENCODERS

MODEL = JanusConfig(
    name="janus_emoji",
    und_encoder=SiglipConfig(image_size=64, patch_size=16, width=192, depth=4, num_heads=4, mlp_dim=768),
    gen_encoder=TOKENIZER.model,
    llm=LlamaConfig(
        vocab_size=1024, width=256, depth=4, num_heads=4, num_kv_heads=4, head_dim=64, mlp_dim=704, max_positions=512
    ),
    gen_head_width=256,
)

STAGE_1 = Stage(
    trained=("und_adaptor/*", "llm/*"),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, weight_decay=0.01, muon_learning_rate=0.01),
    steps=150,
    batch_size=16,
    phases=(Phase(None, {"understanding": 10, "text": 1}),),
    supervision=Supervision.ANSWERS,
    first_sentence=0.0,  # A name is not a sentence.
    budget=Budget(tokens=256, und_images=3, gen_images=0, text_targets=96),
    initialisation=Initialisation("parts", llm=RANDOM, image_tokens_from_codebook=True),
    ema_decay=0.98,
)

STAGE_2 = replace(
    STAGE_1,
    # All except the encoders and the embeddings and output weights of image tokens, which come from the codebook.
    trained=("und_adaptor/*", "gen_adaptor/*", "gen_head/fc1/*", "gen_head/fc2/bias", "llm/*"),
    steps=200,
    phases=(Phase(None, {"understanding": 10, "generation": 30, "text": 1}),),
    budget=Budget(tokens=256, und_images=2, gen_images=4, text_targets=64),
    initialisation=Initialisation(),
)

STAGE_3 = replace(
    STAGE_2,
    trained=ALL_BUT_ENCODERS,
    optimizer=replace(STAGE_1.optimizer, schedule="cosine"),
    steps=600,
    ema_decay=0.99,
)

RECIPE = Recipe(
    architecture=MODEL,
    stages=(STAGE_1, STAGE_2, STAGE_3),
    sources={name: SOURCES[name] for name in ("understanding", "generation", "text")},
    precomputed_image_tokens=True,
    intervals=Intervals(report=20, evaluate=0, sample=0, save=100),
    resources=Resources(remat="none", scan_unroll=4, data_workers=0, data_threads=2),
)


def get_config() -> ConfigDict:
    """Returns the recipe as a config."""
    return to_config(RECIPE)
