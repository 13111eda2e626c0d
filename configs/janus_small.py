"""Small Janus for a few hundred pictures of 64 pixels with captions, trained from scratch on a CPU in minutes.

    janus-train --config janus_small --workdir DIR --config.stage=1 --config.tokenizer=TOKENIZER \\
        --config.stages.stage_1.initialisation.und_encoder=SIGLIP \\
        --config.stages.stage_1.initialisation.gen_encoder=VQ \\
        --config.sources.understanding.directory=UND

For stages 2 and 3, set `--config.stage=2` or 3, add `--config.sources.generation.directory=GEN`, and omit TOKENIZER,
SIGLIP and VQ. GEN must contain image tokens (`janus-prepare --tokenizer VQ`). docs/training.md has all commands. SIGLIP
and VQ are the results of siglip_small and vq_small.

There is no language model of this size to start from, so stage 1 trains one on answers. The encoders are frozen in all
stages.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from janus_jax.config import JanusConfig, LlamaConfig
from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packing import Budget
from janus_jax.training.config_dicts import from_config, to_config
from janus_jax.training.image_tokenizer.recipe import VQRecipe
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import SOURCES, Intervals, Recipe, Resources, Samples
from janus_jax.training.recipe_files import load_recipe
from janus_jax.training.siglip import SiglipRecipe
from janus_jax.training.stage_config import RANDOM, Initialisation, Stage
from janus_jax.training.trained_params import ALL_BUT_ENCODERS

MODEL = JanusConfig(
    name="janus_small",
    und_encoder=from_config(SiglipRecipe, load_recipe("siglip_small")).encoder,
    gen_encoder=from_config(VQRecipe, load_recipe("vq_small")).model,
    llm=LlamaConfig(
        vocab_size=512, width=128, depth=4, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=384, max_positions=512
    ),
    gen_head_width=256,
)

STAGE_1 = Stage(
    trained=("und_adaptor/*", "llm/*"),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, weight_decay=0.01, muon_learning_rate=0.01),
    steps=100,
    batch_size=8,
    phases=(Phase(None, {"understanding": 1}),),
    supervision=Supervision.ANSWERS,
    first_sentence=0.0,
    budget=Budget(tokens=256, und_images=6, gen_images=0, text_targets=128),
    initialisation=Initialisation("parts", llm=RANDOM, image_tokens_from_codebook=True),
    ema_decay=0.98,
)

STAGE_2 = replace(
    STAGE_1,
    # All except the encoders and the embeddings and output weights of image tokens, which come from the codebook.
    trained=("und_adaptor/*", "gen_adaptor/*", "gen_head/fc1/*", "gen_head/fc2/bias", "llm/*"),
    steps=200,
    phases=(Phase(None, {"understanding": 1, "generation": 2}),),
    budget=Budget(tokens=256, und_images=3, gen_images=3, text_targets=64),
    initialisation=Initialisation(),
)

STAGE_3 = replace(
    STAGE_2,
    trained=ALL_BUT_ENCODERS,
    optimizer=replace(STAGE_1.optimizer, schedule="cosine"),
    steps=500,
    phases=(Phase(None, {"understanding": 1, "generation": 3}),),
)


def get_config() -> ConfigDict:
    """Returns the recipe."""
    recipe = Recipe(
        architecture=MODEL,
        stages=(STAGE_1, STAGE_2, STAGE_3),
        sources={name: SOURCES[name] for name in ("understanding", "generation")},
        precomputed_image_tokens=True,
        intervals=Intervals(report=20, evaluate=0, sample=0, save=100),
        samples=Samples(),
        resources=Resources(remat="none", scan_unroll=4, data_workers=0, data_threads=2),
    )
    return to_config(recipe)
