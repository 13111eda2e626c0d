"""How much of everything `launch.shapes` does, by its budgets, and the recipes that come of it."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from janus_jax.config import VisualEncoder

TEXTS = 4_000
"""Records of plain text, whatever the budget."""


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
      tokenizer_steps: of the image tokenizer; None for its recipe's.
      pairs: pictures with captions for the encoder.
      encoder_steps: of the encoder.
      understanding, generation: records; there are as many of single things as a fifth of each, and 4,000 of text.
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
    "25min": Plan(10_000, 200, 16_000, 24_000, (500, 500, 800)),
    "full": Plan(10_000, 200, 40_000, 50_000, (700, 800, 3_200), (200, 100)),
}


@dataclass(frozen=True)
class SmallModel:
    """A model that `launch.shapes` trains.

    Attributes:
      config: module of its `RECIPE`, its `MODEL` and the `ENCODER` that it understands with.
      released: name of its folder in the released layout.
      draws_ids: whether an image tokenizer is trained first, whose ids it draws.
      plans: by budget.
    """

    config: str
    released: str
    draws_ids: bool
    plans: Mapping[str, Plan]

    @property
    def module(self) -> Any:
        """Its config's."""
        return importlib.import_module(self.config)


MODELS = {
    "janus": SmallModel("configs.shapes_janus", "Janus-shapes", draws_ids=True, plans=PLANS),
    "janusflow": SmallModel("configs.shapes_janusflow", "JanusFlow-shapes", draws_ids=False, plans=PLANS),
}


def of_steps(recipe: Any, steps: int) -> Any:
    """A recipe, or a stage, of so many steps, of which the warm-up takes a tenth at most."""
    warmup = min(recipe.optimizer.warmup_steps, steps // 10)
    return replace(recipe, steps=steps, optimizer=replace(recipe.optimizer, warmup_steps=warmup))


def recipe(
    workdir: Path,
    plan: Plan,
    stage: int,
    understands_by: VisualEncoder = "und_encoder",
    model: SmallModel = MODELS["janus"],
) -> Any:
    """The recipe of a stage, on this workdir's folders.

    Args:
      understands_by: of a Janus.
    """
    whole = model.module.RECIPE
    stages = []
    for number, (one, steps) in enumerate(zip(whole.stages, plan.stages, strict=True)):
        phases = one.phases
        if len(phases) > 1:  # The beginning takes what it takes, where there are steps for it.
            phases = (replace(phases[0], until_step=min(phases[0].until_step or 0, max(steps // 2, 1))), *phases[1:])
        start = one.initialisation
        if not number:
            trained_before = ("und_encoder", "gen_encoder") if model.draws_ids else ("und_encoder",)
            start = replace(start, **{part: str(workdir / part) for part in trained_before})
        stages.append(replace(of_steps(one, steps), phases=phases, initialisation=start))
    architecture = whole.architecture
    return replace(
        whole,
        architecture=replace(architecture, understands_by=understands_by) if model.draws_ids else architecture,
        stages=tuple(stages),
        sources={
            name: replace(source, directory=str(workdir / "data" / name)) for name, source in whole.sources.items()
        },
        stage=stage,
        tokenizer=str(workdir / "text"),
    )
