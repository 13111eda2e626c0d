"""How much of everything `examples.shapes.train` does, by its budgets, and the recipes that come of it."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from janus_jax.config import JanusConfig, VisualEncoder
from janus_jax.training.recipe import RANDOM

TEXTS = 4_000
"""Records of plain text, whatever the budget."""


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
      tokenizer_steps: of the image tokenizer, or the VAE; None for its recipe's.
      pairs: pictures with captions for the encoder.
      encoder_steps: of the encoder.
      understanding, generation: records; there are as many of single things as a fifth of each, of places
        and of sides as a third of the former, of numbers as half of the latter, and 4,000 of text.
      stages: steps of stages I, II and III.
      asked: questions a topic, and prompts a category, of the evaluation.
    """

    pairs: int
    encoder_steps: int
    understanding: int
    generation: int
    stages: tuple[int, int, int]
    asked: tuple[int, int] = (100, 50)
    tokenizer_steps: int | None = None


PLANS = {
    "smoke": Plan(256, 4, 256, 256, (4, 4, 4), (1, 1), tokenizer_steps=4),
    "25min": Plan(16_000, 200, 16_000, 24_000, (500, 400, 1_200)),
    "full": Plan(16_000, 400, 40_000, 50_000, (700, 600, 4_000), (200, 100)),
}

FLOW_PLANS = PLANS | {
    # Its steps take longer.
    "25min": replace(PLANS["25min"], stages=(500, 300, 600)),
    "full": replace(PLANS["full"], stages=(700, 600, 2_200)),
}


@dataclass(frozen=True)
class SmallModel:
    """A model that `examples.shapes.train` trains.

    Attributes:
      config: module of its `RECIPE`, its `MODEL` and the `ENCODER` that it understands with.
      released: name of its folder in the released layout.
      pixels_by: the part between pixels and what it draws, which is trained first.
      plans: by budget.
    """

    config: str
    released: str
    pixels_by: Literal["gen_encoder", "vae"]
    plans: Mapping[str, Plan]

    @property
    def module(self) -> Any:
        """Its config's."""
        return importlib.import_module(self.config)


MODELS = {
    "janus": SmallModel("examples.shapes.configs.janus", "Janus-shapes", pixels_by="gen_encoder", plans=PLANS),
    "janusflow": SmallModel("examples.shapes.configs.janusflow", "JanusFlow-shapes", pixels_by="vae", plans=FLOW_PLANS),
}


def of_steps(recipe: Any, steps: int | None) -> Any:
    """A recipe, or a stage, of so many steps, of which the warm-up takes a tenth at most; of its own for None."""
    if steps is None:
        return recipe
    warmup = min(recipe.optimizer.warmup_steps, steps // 10)
    return replace(recipe, steps=steps, optimizer=replace(recipe.optimizer, warmup_steps=warmup))


def recipe(
    workdir: Path,
    plan: Plan,
    stage: int,
    understanding_encoder: VisualEncoder = "und_encoder",
    model: SmallModel = MODELS["janus"],
) -> Any:
    """The recipe of a stage, on this workdir's folders.

    Args:
      understanding_encoder: of a Janus.
    """
    whole = model.module.RECIPE
    stages = []
    for number, (one, steps) in enumerate(zip(whole.stages, plan.stages, strict=True)):
        phases = one.phases
        if len(phases) > 1:  # The beginning takes what it takes, where there are steps for it.
            phases = (replace(phases[0], until_step=min(phases[0].until_step or 0, max(steps // 2, 1))), *phases[1:])
        start = one.initialisation
        if not number:
            # Where the image tokenizer understands, nothing passes through the other encoder.
            seen = str(workdir / "und_encoder") if understanding_encoder == "und_encoder" else RANDOM
            start = replace(start, und_encoder=seen)
            start = replace(start, **{model.pixels_by: str(workdir / model.pixels_by)})
        stages.append(replace(of_steps(one, steps), phases=phases, initialisation=start))
    return replace(
        whole,
        architecture=architecture(understanding_encoder, model),
        stages=tuple(stages),
        sources={
            name: replace(source, directory=str(workdir / "data" / name)) for name, source in whole.sources.items()
        },
        stage=stage,
        tokenizer=str(text_tokenizer(workdir, understanding_encoder)),
    )


def architecture(understanding_encoder: VisualEncoder, model: SmallModel = MODELS["janus"]) -> Any:
    """The model's config; where its image tokenizer serves understanding too, a patch is an id's."""
    config = model.module.MODEL
    if understanding_encoder == "und_encoder":
        return config
    assert isinstance(config, JanusConfig), "a JanusFlow has no image tokenizer"
    side = round(config.gen_encoder.num_tokens**0.5)
    patches = replace(config.und_encoder, patch_size=config.und_encoder.image_size // side)
    return replace(config, und_encoder=patches, understanding_encoder=understanding_encoder)


def text_tokenizer(workdir: Path, understanding_encoder: VisualEncoder) -> Path:
    """The folder of the text tokenizer, which knows how many places an image takes."""
    return workdir / ("text" if understanding_encoder == "und_encoder" else "text_one_encoder")
