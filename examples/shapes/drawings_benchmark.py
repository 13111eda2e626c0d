"""Benchmark: conversations in which the model generates images and changes them, scored by the detector."""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from examples.shapes.dataset import (
    DrawingTask,
    Question,
    SceneEdit,
    Split,
    Transcript,
    chance_of_drawings,
    converse,
    sample_drawing_tasks,
    score_transcripts,
)
from examples.shapes.dataset.drawing_scoring import Picture
from examples.shapes.dataset.records import encode_png
from examples.shapes.understanding_benchmark import SEED
from janus_jax.evaluation.benchmark import Answers, AnswerSettings, Benchmark, Choice, Number, Options, Scores
from janus_jax.evaluation.registry import register_benchmark
from janus_jax.processing import Message, answer_message

GUIDANCE_SCALE, TEMPERATURE = 1.5, 0.25
"""Settings of drawings."""

_MAX_TOKENS = 8


class DrawingModel(Protocol):
    """A model that draws in conversations, such as `Pretrained`."""

    def converse(self, messages: Sequence[Message], **options: Any) -> Iterator[Any]: ...


@dataclass(frozen=True, kw_only=True)
class ShapesDrawing:
    """A conversation of the benchmark. See `benchmark.Item`."""

    id: str
    task: DrawingTask = field(repr=False)
    group: str = ""

    @property
    def inputs(self) -> list[str]:
        """See `benchmark.Item`."""
        return [self.task.drawing.text, self.task.plot, str(self.task.seed)]

    @property
    def image_files(self) -> list[Path]:
        """See `benchmark.Item`. The conversation needs no files."""
        return []


@dataclass
class ModelAssistant:
    """A conversation with a model.

    Attributes:
      model: The model.
      seed: Random seed.
      options: Settings of drawings, see `Pretrained.converse`.
    """

    model: DrawingModel
    seed: int = 0
    options: Mapping[str, float] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    replies: list[Picture | str] = field(default_factory=list)

    def reply(self, task: DrawingTask, text: str, follow_up: SceneEdit | Question | None) -> Picture | str:
        """Returns the first picture of the model's reply, or else its text. See `drawing_scoring.Assistant`."""
        self.messages.append({"role": "user", "content": text})
        seed = self.seed + len(self.messages)
        sampling = {**self.options, "max_images": 1}
        pieces = list(
            self.model.converse(self.messages, max_new_tokens=_MAX_TOKENS, seed=seed, image_sampling=sampling)
        )
        self.messages.append(answer_message(pieces))
        pictures = [np.asarray(piece.image) for piece in pieces if not isinstance(piece, str)]
        words = "".join(piece for piece in pieces if isinstance(piece, str)).strip()
        self.replies.append(pictures[0] if pictures else words)
        return self.replies[-1]


@dataclass
class _Replay:
    """The replies of an earlier conversation."""

    replies: Iterator[Picture | str]

    def reply(self, task: DrawingTask, text: str, follow_up: SceneEdit | Question | None) -> Picture | str:
        return next(self.replies)


def read(data: Path, options: Options) -> list[ShapesDrawing]:
    """Returns random conversations, the same number per plot. Those of "test" are about held-out combinations."""
    tasks = sample_drawing_tasks(Split(options["split"]), int(options["per_plot"]), SEED)
    return drawing_items(tasks)


def drawing_items(tasks: Sequence[DrawingTask]) -> list[ShapesDrawing]:
    """Returns the items of conversations."""
    return [ShapesDrawing(id=f"{number:05}", task=task) for number, task in enumerate(tasks)]


def answer(
    model: DrawingModel, items: Sequence[ShapesDrawing], settings: AnswerSettings
) -> Iterator[Mapping[str, str]]:
    """Has the conversations. Yields the replies of each as JSON: texts, and pictures as PNG in base64."""
    sampling = {name: float(settings.options[name]) for name in ("guidance_scale", "temperature")}
    for item in items:
        assistant = ModelAssistant(model, settings.seed, sampling)
        converse(item.task, assistant)
        replies = [
            {"text": reply} if isinstance(reply, str) else {"png": base64.b64encode(encode_png(reply)).decode()}
            for reply in assistant.replies
        ]
        yield {item.id: json.dumps(replies)}


def transcript(item: ShapesDrawing, replies: str) -> Transcript:
    """Returns a conversation from the replies that `answer` yields."""

    def decoded() -> Iterator[Picture | str]:
        for reply in json.loads(replies):
            is_text = "text" in reply
            yield reply["text"] if is_text else np.asarray(Image.open(io.BytesIO(base64.b64decode(reply["png"]))))

    return converse(item.task, _Replay(decoded()))


def score(items: Sequence[ShapesDrawing], answers: Answers, options: Options) -> Scores:
    """Returns the fraction of conversations without a wrong reply, and that of random replies."""
    scores = score_transcripts([transcript(item, answers[item.id]) for item in items])
    return {
        "overall": scores.overall,
        **scores.by_category,
        "chance": chance_of_drawings([item.task for item in items]).overall,
    }


def write_predictions(items: Sequence[ShapesDrawing], answers: Answers, folder: Path) -> None:
    """Writes `shapes.jsonl`: one line per conversation with its messages and the verdict; and the pictures as PNG."""
    with (folder / "shapes.jsonl").open("w", encoding="utf-8") as file:
        for item in items:
            turns = []
            for number, turn in enumerate(transcript(item, answers[item.id]).turns):
                reply = turn.reply
                if not isinstance(reply, str):
                    name = f"{item.id}_{number}.png"
                    (folder / name).write_bytes(encode_png(reply))
                    reply = name
                turns.append({"user": turn.text, "assistant": reply, "reason": turn.reason})
            file.write(json.dumps({"plot": item.task.plot, "correct": not turns[-1]["reason"], "turns": turns}) + "\n")


BENCHMARK = register_benchmark(
    Benchmark(
        name="shapes_drawings",
        title="Shapes dataset: conversations about drawings of the model",
        layout="",
        source="generated",
        read=read,
        answer=answer,
        score=score,
        write_predictions=write_predictions,
        options={
            "split": Choice("test", "train"),
            "per_plot": Number(50, 1, 10_000, integer=True),
            "guidance_scale": Number(GUIDANCE_SCALE),
            "temperature": Number(TEMPERATURE),
        },
    )
)
