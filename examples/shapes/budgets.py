"""Training budgets of this example, and the recipes with these budgets."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from janus_jax.config import JanusConfig, VisualEncoder
from janus_jax.training.stage_config import RANDOM

TEXTS = 4_000
"""Number of plain text records in every budget."""


@dataclass(frozen=True)
class Budget:
    """Numbers of steps and records of a training.

    Attributes:
      pairs: Images with captions for the understanding encoder.
      encoder_steps: Steps of the understanding encoder.
      understanding: Understanding records about everything. One fifth of this number are added about single objects,
        one third about positions and one third about relations.
      generation: Generation records of all categories. One fifth of this number are added with single objects, and half
        of this number with counts and relations.
      stages: Steps of stages 1, 2 and 3.
      evaluation: Questions per topic and prompts per category.
      tokenizer_steps: Steps of the image tokenizer or VAE. None uses those of the recipe.
    """

    pairs: int
    encoder_steps: int
    understanding: int
    generation: int
    stages: tuple[int, int, int]
    evaluation: tuple[int, int] = (100, 50)
    tokenizer_steps: int | None = None


BUDGETS = {
    "smoke": Budget(256, 4, 256, 256, (4, 4, 4), evaluation=(1, 1), tokenizer_steps=4),
    "25min": Budget(16_000, 200, 16_000, 24_000, (500, 400, 1_200)),
    "full": Budget(16_000, 400, 40_000, 50_000, (700, 600, 4_000), evaluation=(200, 100)),
}

FLOW_BUDGETS = BUDGETS | {
    # A step of JanusFlow takes longer.
    "25min": replace(BUDGETS["25min"], stages=(500, 300, 600)),
    "full": replace(BUDGETS["full"], stages=(700, 600, 2_200)),
}


@dataclass(frozen=True)
class SmallModel:
    """A model that `examples.shapes.train` can train.

    Attributes:
      config: Name of the module with its `RECIPE`, `MODEL`, `ENCODER` and `TOKENIZER`.
      released: Name of its folder in the released layout.
      tokenizer_part: Name of the image tokenizer or VAE among the parts of the model.
      budgets: Budgets by name.
    """

    config: str
    released: str
    tokenizer_part: Literal["gen_encoder", "vae"]
    budgets: Mapping[str, Budget]

    @property
    def module(self) -> Any:
        """The module named by `config`."""
        return importlib.import_module(self.config)


MODELS = {
    "janus": SmallModel("examples.shapes.configs.janus", "Janus-shapes", "gen_encoder", BUDGETS),
    "janusflow": SmallModel("examples.shapes.configs.janusflow", "JanusFlow-shapes", "vae", FLOW_BUDGETS),
}


def with_steps(recipe: Any, steps: int | None) -> Any:
    """Returns a recipe or stage with this number of steps. At most a tenth are warm-up. None changes nothing."""
    if steps is None:
        return recipe
    warmup = min(recipe.optimizer.warmup_steps, steps // 10)
    return replace(recipe, steps=steps, optimizer=replace(recipe.optimizer, warmup_steps=warmup))


def stage_recipe(
    workdir: Path, budget: Budget, stage: int, understanding_encoder: VisualEncoder, model: SmallModel = MODELS["janus"]
) -> Any:
    """Returns the recipe of a stage, with the folders of this workdir.

    Args:
      understanding_encoder: Encoder that is used for understanding.
    """
    recipe = model.module.RECIPE
    stages = []
    for number, (one, steps) in enumerate(zip(recipe.stages, budget.stages, strict=True)):
        phases = one.phases
        if len(phases) > 1:  # The first phase keeps its length, but takes at most half of the steps.
            phases = (replace(phases[0], until_step=min(phases[0].until_step or 0, max(steps // 2, 1))), *phases[1:])
        start = one.initialisation
        if not number:
            # A model that uses its image tokenizer for understanding has no trained understanding encoder.
            encoder = str(workdir / "und_encoder") if understanding_encoder == "und_encoder" else RANDOM
            tokenizer = {model.tokenizer_part: str(tokenizer_folder(workdir, model))}
            start = replace(start, und_encoder=encoder, **tokenizer)
        stages.append(replace(with_steps(one, steps), phases=phases, initialisation=start))
    return replace(
        recipe,
        architecture=architecture(understanding_encoder, model),
        stages=tuple(stages),
        sources={
            name: replace(source, directory=str(workdir / "data" / name)) for name, source in recipe.sources.items()
        },
        stage=stage,
        tokenizer=str(text_tokenizer_folder(workdir, understanding_encoder)),
    )


def architecture(understanding_encoder: VisualEncoder, model: SmallModel = MODELS["janus"]) -> Any:
    """Returns the model config. If the image tokenizer is used for understanding, patches are as large as its own."""
    config = model.module.MODEL
    if understanding_encoder == "und_encoder":
        return config
    assert isinstance(config, JanusConfig), "JanusFlow has no image tokenizer"
    side = round(config.gen_encoder.num_tokens**0.5)
    patches = replace(config.und_encoder, patch_size=config.und_encoder.image_size // side)
    return replace(config, und_encoder=patches, understanding_encoder=understanding_encoder)


def tokenizer_folder(workdir: Path, model: SmallModel) -> Path:
    """Returns the folder of the trained image tokenizer or VAE."""
    return workdir / "runs" / model.tokenizer_part / "tokenizer"


def text_tokenizer_folder(workdir: Path, understanding_encoder: VisualEncoder) -> Path:
    """Returns the folder of the text tokenizer, which also stores the encoder's number of tokens per image."""
    return workdir / ("text" if understanding_encoder == "und_encoder" else "text_one_encoder")
