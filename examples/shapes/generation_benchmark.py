"""The embedded world: prompts of GenEval's six categories, drawn, and read by the world's own detector."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from examples.shapes.dataset import Prompt, Split, Verdict, chance_of_drawings, judge, prompts, score_verdicts
from examples.shapes.understanding_benchmark import SEED
from janus_jax.evaluation.benchmark import Answers, Benchmark, Choice, Number, Options, Scores
from janus_jax.evaluation.generation.image_requests import (
    PREDICTIONS,
    ImageRequest,
    generated_files,
    requests_for_prompt,
)
from janus_jax.evaluation.registry import register_benchmark

GUIDANCE_SCALE, TEMPERATURE = 2.0, 0.7
"""That the small models of this world draw best with, on combinations that they are trained on."""


@dataclass(frozen=True, kw_only=True)
class ShapesPicture(ImageRequest):
    """A picture, and what it must show."""

    wanted: Prompt = field(repr=False)


def drawing(wanted: Sequence[Prompt]) -> list[ShapesPicture]:
    """One picture of each prompt."""
    return [
        ShapesPicture(**vars(picture), wanted=prompt)
        for number, prompt in enumerate(wanted)
        for picture in requests_for_prompt(prompt.text, number, [f"{PREDICTIONS}/{number:05}.png"], Path())
    ]


def read(data: Path, options: Options) -> list[ShapesPicture]:
    """As many prompts of each category; those of "test" ask for combinations that no data set for training shows."""
    return drawing(prompts(Split(options["split"]), int(options["per_category"]), SEED))


def verdicts(pictures: Sequence[ShapesPicture], answers: Answers) -> list[Verdict]:
    """What the detector says of each picture.

    Raises:
      JanusError: one is not there.
    """
    files = generated_files(pictures, answers)
    return [judge(one.wanted, np.asarray(Image.open(file))) for one, file in zip(pictures, files, strict=True)]


def score(pictures: Sequence[ShapesPicture], answers: Answers, options: Options) -> Scores:
    """Shares of right pictures by GenEval's rule, by the strict one, and what guessing gives."""
    wanted = [picture.wanted for picture in pictures]
    scores = score_verdicts(wanted, verdicts(pictures, answers))
    return {
        "overall": scores.geneval.overall,
        **scores.geneval.by_category,
        "strict": scores.strict.overall,
        "chance": chance_of_drawings(wanted).geneval.overall,
    }


def write_predictions(pictures: Sequence[ShapesPicture], answers: Answers, folder: Path) -> None:
    """`shapes.jsonl`: prompt, file and verdict, a line a picture; the pictures are there already."""
    with (folder / "shapes.jsonl").open("w", encoding="utf-8") as file:
        for picture, verdict in zip(pictures, verdicts(pictures, answers), strict=True):
            told = {"prompt": picture.prompt, "file": Path(picture.file).name, "correct": verdict.correct}
            file.write(json.dumps(told | {"strict": verdict.strict, "reason": verdict.reason}) + "\n")


BENCHMARK = register_benchmark(
    Benchmark(
        name="shapes_drawing",
        title="The embedded world: prompts of six kinds, drawn",
        layout="",
        source="comes with the package",
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
