"""Benchmark: edits of scenes of the shapes dataset, scored by the dataset's detector."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from examples.shapes.dataset import (
    EditVerdict,
    Limits,
    SceneEdit,
    Split,
    chance_of_edits,
    check_edit,
    render,
    sample_edits,
    score_edit_verdicts,
)
from examples.shapes.dataset.records import encode_png
from examples.shapes.understanding_benchmark import SEED
from janus_jax.evaluation.benchmark import Answers, Benchmark, Choice, Number, Options, Scores
from janus_jax.evaluation.generation.edit_requests import EDIT_OPTIONS, EditRequest
from janus_jax.evaluation.generation.image_requests import PREDICTIONS, generated_files, requests_for_prompt
from janus_jax.evaluation.registry import register_benchmark

GUIDANCE_SCALE, IMAGE_GUIDANCE_SCALE, TEMPERATURE = 1.0, 0.0, 0.5
"""Settings of edits."""


@dataclass(frozen=True, kw_only=True)
class ShapesEdit(EditRequest):
    """A request for one edited image, with the scenes before and after."""

    edit: SceneEdit = field(repr=False)


def edit_requests(edits: Sequence[SceneEdit]) -> list[ShapesEdit]:
    """Returns one request per edit; the source images are rendered."""
    return [
        ShapesEdit(
            **vars(request),
            source=encode_png(render(edit.source)),
            source_name=f"{number:05}",
            edit=edit,
        )
        for number, edit in enumerate(edits)
        for request in requests_for_prompt(edit.request.text, number, [f"{PREDICTIONS}/{number:05}.png"], Path())
    ]


def read(data: Path, options: Options) -> list[ShapesEdit]:
    """Returns random edits, the same number per kind. The results of "test" are held-out combinations."""
    limits = Limits(split=Split(options["split"]))
    return edit_requests(sample_edits(int(options["per_kind"]), limits, SEED))


def verdicts(items: Sequence[ShapesEdit], answers: Answers) -> list[EditVerdict]:
    """Returns the verdict on each edited image.

    Raises:
      JanusError: An image is missing.
    """
    files = generated_files(items, answers)
    return [
        check_edit(item.edit.request, item.edit.source, render(item.edit.source), np.asarray(Image.open(file)))
        for item, file in zip(items, files, strict=True)
    ]


def score(items: Sequence[ShapesEdit], answers: Answers, options: Options) -> Scores:
    """Returns the fraction of correct edits, of met requests and of correct random edits, and what is kept."""
    edits = [item.edit for item in items]
    scores = score_edit_verdicts([edit.request for edit in edits], verdicts(items, answers))
    return {
        "overall": scores.correct.overall,
        **scores.correct.by_category,
        "met": scores.met.overall,
        "objects kept": scores.kept,
        "pixels unchanged": scores.unchanged,
        "chance": chance_of_edits(edits).correct.overall,
    }


def write_predictions(items: Sequence[ShapesEdit], answers: Answers, folder: Path) -> None:
    """Writes `shapes.jsonl`: one line per edit with the request, the image file and the verdict."""
    with (folder / "shapes.jsonl").open("w", encoding="utf-8") as file:
        for item, verdict in zip(items, verdicts(items, answers), strict=True):
            line = {"request": item.prompt, "file": Path(item.file).name, "correct": verdict.correct}
            line |= {"met": verdict.met, "kept": verdict.kept, "unchanged": verdict.unchanged}
            file.write(json.dumps(line | {"reason": verdict.reason}) + "\n")


BENCHMARK = register_benchmark(
    Benchmark(
        name="shapes_edits",
        title="Shapes dataset: edits of eight kinds",
        layout="",
        source="generated",
        read=read,
        score=score,
        write_predictions=write_predictions,
        options={
            "split": Choice("test", "train"),
            "per_kind": Number(50, 1, 10_000, integer=True),
            **EDIT_OPTIONS,
            "guidance_scale": Number(GUIDANCE_SCALE),
            "image_guidance_scale": Number(IMAGE_GUIDANCE_SCALE),
            "temperature": Number(TEMPERATURE),
        },
    )
)
