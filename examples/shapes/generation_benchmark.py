"""Benchmark: prompts of GenEval's six categories about the shapes dataset, scored by the dataset's detector."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.shapes.dataset import (
    Prompt,
    Split,
    Verdict,
    chance_of_images,
    check_image,
    sample_prompts,
    score_verdicts,
)
from examples.shapes.understanding_benchmark import SEED
from examples.shapes.verification import verification_metadata
from janus_jax.evaluation.benchmark import Answers, Benchmark, Choice, Number, Options, Scores
from janus_jax.evaluation.generation.image_requests import (
    PREDICTIONS,
    ImageRequest,
    generated_files,
    requests_for_prompt,
)
from janus_jax.evaluation.registry import register_benchmark

GUIDANCE_SCALE, TEMPERATURE = 2.0, 0.7
"""Settings with the best scores of the small models, measured on combinations that occur in training."""


@dataclass(frozen=True, kw_only=True)
class ShapesImage(ImageRequest):
    """An image request with the prompt and its requirements."""

    scene_prompt: Prompt = field(repr=False)

    @property
    def prompt_metadata(self) -> Mapping[str, Any]:
        """Questions with which a model checks its image."""
        return verification_metadata(self.scene_prompt)


def image_requests(prompts: Sequence[Prompt]) -> list[ShapesImage]:
    """Returns one image request per prompt."""
    return [
        ShapesImage(**vars(request), scene_prompt=prompt)
        for number, prompt in enumerate(prompts)
        for request in requests_for_prompt(prompt.text, number, [f"{PREDICTIONS}/{number:05}.png"], Path())
    ]


def read(data: Path, options: Options) -> list[ShapesImage]:
    """Returns random prompts, the same number per category. Those of "test" ask for held-out combinations."""
    return image_requests(sample_prompts(Split(options["split"]), int(options["per_category"]), SEED))


def verdicts(requests: Sequence[ShapesImage], answers: Answers) -> list[Verdict]:
    """Returns the verdict on each image.

    Raises:
      JanusError: An image is missing.
    """
    files = generated_files(requests, answers)
    return [
        check_image(one.scene_prompt, np.asarray(Image.open(file))) for one, file in zip(requests, files, strict=True)
    ]


def score(requests: Sequence[ShapesImage], answers: Answers, options: Options) -> Scores:
    """Returns the fraction of correct images by GenEval's rule and the strict rule, and of correct random images."""
    prompts = [request.scene_prompt for request in requests]
    scores = score_verdicts(prompts, verdicts(requests, answers))
    return {
        "overall": scores.geneval.overall,
        **scores.geneval.by_category,
        "strict": scores.strict.overall,
        "chance": chance_of_images(prompts).geneval.overall,
    }


def write_predictions(requests: Sequence[ShapesImage], answers: Answers, folder: Path) -> None:
    """Writes `shapes.jsonl`: one line per image with the prompt, the image file and the verdict."""
    with (folder / "shapes.jsonl").open("w", encoding="utf-8") as file:
        for request, verdict in zip(requests, verdicts(requests, answers), strict=True):
            line = {"prompt": request.prompt, "file": Path(request.file).name, "correct": verdict.correct}
            file.write(json.dumps(line | {"strict": verdict.strict, "reason": verdict.reason}) + "\n")


BENCHMARK = register_benchmark(
    Benchmark(
        name="shapes_generation",
        title="Shapes dataset: prompts of six categories",
        layout="",
        source="generated",
        read=read,
        score=score,
        write_predictions=write_predictions,
        options={
            "split": Choice("test", "train"),
            "per_category": Number(50, 1, 10_000, integer=True),
            "guidance_scale": Number(GUIDANCE_SCALE),
            "temperature": Number(TEMPERATURE),
        },
    )
)
