"""Benchmark: edits of scenes of the shapes dataset, scored by the dataset's detector."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
from janus_jax.evaluation.benchmark import Answers, AnswerSettings, Benchmark, Choice, Number, Options, Scores
from janus_jax.evaluation.generation.image_requests import PREDICTIONS, ImageRequest, generated_files
from janus_jax.evaluation.registry import register_benchmark
from janus_jax.image_files import save_png

STYLE = "janus_4o"
GUIDANCE_SCALE, IMAGE_GUIDANCE_SCALE, TEMPERATURE = 1.0, 0.0, 0.5
"""Settings of edits."""


class EditModel(Protocol):
    """A model that edits images, such as `Pretrained`."""

    def edit_stream(
        self, edits: Sequence[tuple[Sequence[Any], str]], n: int = ..., seed: int = ..., **settings: Any
    ) -> Iterator[Any]: ...


@dataclass(frozen=True, kw_only=True)
class ShapesEdit(ImageRequest):
    """A request for one edited image."""

    edit: SceneEdit = field(repr=False)

    @property
    def inputs(self) -> list[Any]:
        """See `ImageRequest`."""
        return [*super().inputs, self.source]

    @property
    def source(self) -> bytes:
        """The source image as a PNG file."""
        return encode_png(render(self.edit.source))


def edit_requests(edits: Sequence[SceneEdit]) -> list[ShapesEdit]:
    """Returns one request per edit."""
    return [
        ShapesEdit(
            id=f"{number:05}",
            group=str(number),
            prompt=edit.request.text,
            prompt_index=number,
            image_index=0,
            file=f"{PREDICTIONS}/{number:05}.png",
            data=Path(),
            edit=edit,
        )
        for number, edit in enumerate(edits)
    ]


def read(data: Path, options: Options) -> list[ShapesEdit]:
    """Returns random edits, the same number per kind. The results of "test" are held-out combinations."""
    limits = Limits(split=Split(options["split"]))
    return edit_requests(sample_edits(int(options["per_kind"]), limits, SEED))


def answer(model: EditModel, items: Sequence[ShapesEdit], settings: AnswerSettings) -> Iterator[Mapping[str, str]]:
    """Edits the images in batches and saves them as PNG. Yields the file names of a batch by request id."""
    sampling: dict[str, Any] = {
        name: float(settings.options[name]) for name in ("guidance_scale", "image_guidance_scale", "temperature")
    }
    size = settings.batch_size
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        padded = [*batch, *[batch[-1]] * (size - len(batch))]
        edits = [([item.source], item.prompt) for item in padded]
        # The seed of a batch differs, because the images of a batch are numbered from 0.
        edited = model.edit_stream(
            edits, seed=settings.seed + batch[0].prompt_index, batch_size=size, style=STYLE, **sampling
        )
        for item, result in zip(batch, edited, strict=False):
            save_png(result.image, settings.folder / item.file, compress_level=1)
        yield {item.id: item.file for item in batch}


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
        answer=answer,
        score=score,
        write_predictions=write_predictions,
        options={
            "split": Choice("test", "train"),
            "per_kind": Number(50, 1, 10_000, integer=True),
            "guidance_scale": Number(GUIDANCE_SCALE),
            "image_guidance_scale": Number(IMAGE_GUIDANCE_SCALE),
            "temperature": Number(TEMPERATURE),
        },
    )
)
