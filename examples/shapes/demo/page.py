"""Writes the web page of the demo: one HTML file that contains its images and needs no network."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from examples.shapes.dataset import render

if TYPE_CHECKING:
    from examples.shapes.dataset import Transcript
    from examples.shapes.demo.finetune import FineTuning
    from examples.shapes.demo.scores import ContextScores, DemoScores
    from examples.shapes.evaluation import EditingResult, GenerationResult, UnderstandingResult

_TEMPLATE = Path(__file__).with_name("page.html")
_SCALE = 4  # The small images are enlarged here, because browsers blur them.
_MAX_ITEMS = 24
_MAX_NEW_ITEMS = 12
_MAX_EDITS = 8
_CURVES = {"loss/understanding": "understanding", "loss/generation": "generation"}


def write_page(
    path: Path,
    before: "DemoScores",
    after: "DemoScores",
    *,
    context: "ContextScores",
    flow: "GenerationResult",
    tuning: "FineTuning",
    report: Mapping[str, float],
    words: Sequence[str],
) -> None:
    """Writes the page.

    Args:
      before: Scores of Janus before fine-tuning.
      after: Scores of Janus after fine-tuning.
      context: Edits and conversations of Janus before fine-tuning.
      flow: Images of JanusFlow.
      tuning: Record of the fine-tuning run.
      report: Content of report.json.
      words: New words of the fine-tuning.
    """
    from jinja2 import Environment

    facts = {
        "questions answered correctly": report["understanding"],
        "prompts generated correctly": report["generation.overall"],
        "edits made correctly": report["edits"],
        "conversations without an error": report["conversations"],
        "questions about the new words": report["new.understanding"],
        "prompts with the new words": report["new.generation"],
    }
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_TEMPLATE.read_text())
    new_images = zip(_images(before.new_generation), _images(after.new_generation), strict=True)
    new_answers = zip(_answers(before.new_understanding), _answers(after.new_understanding), strict=True)
    path.write_text(
        template.render(
            words=words,
            facts=[
                *({"name": name, "value": f"{value:.0%}"} for name, value in facts.items()),
                {"name": "minutes in total", "value": f"{report['minutes']:.1f}"},
            ],
            scores=list(_scores(before.table(), after.table())),
            context_scores=list(_scores(context.table())),
            edits=_subset([*_edits(context.editing)], _MAX_EDITS),
            turns=[*_turns(context.longest_conversation())],
            tuning=tuning,
            curves=_curves(tuning),
            answers=_subset([*_answers(before.understanding)], _MAX_ITEMS),
            images=_subset([*_images(before.generation)], _MAX_ITEMS),
            flow_images=_subset([*_images(flow)], _MAX_ITEMS),
            new_images=_subset([*new_images], _MAX_NEW_ITEMS),
            new_answers=_subset([*new_answers], _MAX_NEW_ITEMS),
        )
    )


def _scores(before: Mapping[str, float], after: Mapping[str, float] | None = None) -> Iterator[dict[str, Any]]:
    totals = ("understanding", "generation.overall", "edits", "conversations")
    for name in before:
        if f"chance.{name}" in before:
            yield {
                "name": name.replace(".", ": ", 1).replace("_", " "),
                "total": name in totals or name.startswith("new."),
                "before": before[name],
                "after": None if after is None else after[name],
                "chance": before[f"chance.{name}"],
            }


def _answers(result: "UnderstandingResult") -> Iterator[dict[str, Any]]:
    for question, answer, correct in zip(result.questions, result.answers, result.correct, strict=True):
        yield {
            "image": _data_url(render(question.scene, 48 * _SCALE)),
            "question": question.text,
            "answer": answer or "(nothing)",
            "correct": correct,
            "expected": question.answer,
        }


def _images(result: "GenerationResult") -> Iterator[dict[str, Any]]:
    for prompt, image, verdict in zip(result.prompts, result.images, result.verdicts, strict=True):
        yield {
            "image": _enlarged(image),
            "prompt": prompt.text,
            "correct": verdict.correct,
            "reason": verdict.reason,
        }


def _edits(result: "EditingResult") -> Iterator[dict[str, Any]]:
    for edit, image, verdict in zip(result.edits, result.images, result.verdicts, strict=True):
        yield {
            "source": _enlarged(render(edit.source)),
            "image": _enlarged(image),
            "request": edit.request.text,
            "correct": verdict.correct,
            "reason": verdict.reason,
        }


def _turns(transcript: "Transcript") -> Iterator[dict[str, Any]]:
    for turn in transcript.turns:
        reply = turn.reply
        yield {
            "request": turn.text,
            "answer": (reply or "(nothing)") if isinstance(reply, str) else None,
            "image": None if isinstance(reply, str) else _enlarged(reply),
            "correct": not turn.reason,
            "reason": turn.reason,
        }


def _enlarged(image: UInt8[np.ndarray, "H W 3"]) -> str:
    size = [side * _SCALE for side in image.shape[1::-1]]
    return _data_url(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)))


def _subset(items: Sequence[Any], count: int) -> list[Any]:
    """Returns at most `count` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _data_url(image: UInt8[np.ndarray, "H W 3"]) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _curves(tuning: "FineTuning") -> str:
    """Returns an SVG plot of the losses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, label in _CURVES.items():
        points = [(line["step"], line[name]) for line in tuning.losses if name in line]
        axes.plot(*zip(*points, strict=True), label=label, linewidth=2)
    axes.axvspan(tuning.resumed_at, tuning.killed_at, color="#d9a441", alpha=0.25, label="computed twice", linewidth=0)
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    return file.getvalue()[file.getvalue().index("<svg") :]
