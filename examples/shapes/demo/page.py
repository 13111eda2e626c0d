"""The demo's page: one HTML file with its pictures inside, that needs no network."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from examples.shapes.dataset import draw

if TYPE_CHECKING:
    from examples.shapes.demo.finetune import FineTuning
    from examples.shapes.demo.scores import DemoScores
    from examples.shapes.evaluation import Generation, Understanding

_TEMPLATE = Path(__file__).with_name("page.html")
_SCALE = 4  # The world's pictures are small: enlarged here, a browser blurs nothing.
_SHOWN = 24
_SHOWN_OF_NEW = 12
_CURVES = {"loss/understanding": "understanding", "loss/generation": "generation"}


def write_page(
    path: Path,
    before: "DemoScores",
    after: "DemoScores",
    flowed: "Generation",
    tuning: "FineTuning",
    figures: Mapping[str, float],
    new: Sequence[str],
) -> None:
    """Writes the page.

    Args:
      before, after: the Janus before and after fine-tuning.
      flowed: what the JanusFlow drew.
      figures: of report.json.
      new: the words that were taught.
    """
    from jinja2 import Environment

    facts = {
        "questions answered right": figures["understanding"],
        "prompts drawn right": figures["generation.overall"],
        "… of the new words": figures["new.understanding"],
        "… drawn with the new words": figures["new.generation"],
    }
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_TEMPLATE.read_text())
    path.write_text(
        template.render(
            new=new,
            facts=[
                *({"name": name, "value": f"{value:.0%}"} for name, value in facts.items()),
                {"name": "minutes, all told", "value": f"{figures['minutes']:.1f}"},
            ],
            scores=list(_scores(before.figures(), after.figures())),
            tuning=tuning,
            curves=_curves(tuning),
            answers=_spread([*_answers(before.understanding)], _SHOWN),
            drawings=_spread([*_drawings(before.generation)], _SHOWN),
            flowed=_spread([*_drawings(flowed)], _SHOWN),
            learnt=_spread(_pairs(_drawings(before.new_generation), _drawings(after.new_generation)), _SHOWN_OF_NEW),
            understood=_spread(
                _pairs(_answers(before.new_understanding), _answers(after.new_understanding)), _SHOWN_OF_NEW
            ),
        )
    )


def _scores(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for name in before:
        if f"chance.{name}" in before:
            yield {
                "name": name.replace(".", ": ", 1).replace("_", " "),
                "total": name in ("understanding", "generation.overall") or name.startswith("new."),
                "before": before[name],
                "after": after[name],
                "chance": before[f"chance.{name}"],
            }


def _answers(understanding: "Understanding") -> Iterator[dict[str, Any]]:
    told = zip(understanding.questions, understanding.answers, understanding.right, strict=True)
    for question, answer, right in told:
        yield {
            "picture": _picture(draw(question.scene, 48 * _SCALE)),
            "question": question.text,
            "answer": answer or "(nothing)",
            "right": right,
            "wanted": question.answer,
        }


def _drawings(generation: "Generation") -> Iterator[dict[str, Any]]:
    for prompt, image, verdict in zip(generation.prompts, generation.images, generation.verdicts, strict=True):
        enlarged = Image.fromarray(image).resize(
            [side * _SCALE for side in image.shape[1::-1]], Image.Resampling.BICUBIC
        )
        yield {
            "picture": _picture(np.asarray(enlarged)),
            "prompt": prompt.text,
            "correct": verdict.correct,
            "reason": verdict.reason,
        }


def _pairs(before: Iterator[Any], after: Iterator[Any]) -> list[dict[str, Any]]:
    return [{"before": one, "after": other} for one, other in zip(before, after, strict=True)]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many of them, from all over."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _picture(image: UInt8[np.ndarray, "H W 3"]) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _curves(tuning: "FineTuning") -> str:
    """The losses as an SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, label in _CURVES.items():
        told = [(line["step"], line[name]) for line in tuning.losses if name in line]
        axes.plot(*zip(*told, strict=True), label=label, linewidth=2)
    axes.axvspan(tuning.resumed_at, tuning.killed_at, color="#d9a441", alpha=0.25, label="computed twice", linewidth=0)
    axes.set(xlabel="step", ylabel="loss, nats an id")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    return file.getvalue()[file.getvalue().index("<svg") :]
