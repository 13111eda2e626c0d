"""The embedded world: questions about drawn scenes, answered in a word. Nothing is downloaded."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.shapes.dataset import Question as WorldQuestion
from examples.shapes.dataset import Split, chance_of_answers, draw, is_right, questions, score_answers
from examples.shapes.dataset.records import encode
from janus_jax.evaluation.benchmark import Answers, Benchmark, Choice, Number, Options, Question, Scores
from janus_jax.evaluation.registry import register_benchmark
from janus_jax.evaluation.understanding.prompts import user_message

SEED = 1 << 16
"""Of what is asked and drawn here, beside those of data sets."""

_WORD = 8  # ids that no answer is longer than


@dataclass(frozen=True, kw_only=True)
class ShapesQuestion(Question):
    """A question, and what the world knows of it."""

    world: WorldQuestion = field(repr=False)


def asking(asked: Sequence[WorldQuestion]) -> list[ShapesQuestion]:
    """Questions as they are put to a model."""
    return [
        ShapesQuestion(
            id=f"{number:05}",
            messages=user_message([encode(draw(question.scene))], question.text),
            max_new_tokens=_WORD,
            world=question,
        )
        for number, question in enumerate(asked)
    ]


def read(data: Path, options: Options) -> list[ShapesQuestion]:
    """As many questions of each topic; those of "test" are about combinations that no data set for training shows."""
    return asking(questions(Split(options["split"]), int(options["per_topic"]), SEED))


def score(items: Sequence[ShapesQuestion], answers: Answers, options: Options) -> Scores:
    """Shares of right answers: the mean of all topics, each topic, and what guessing gives."""
    asked = [item.world for item in items]
    scores = score_answers(asked, [answers[item.id] for item in items])
    return {"overall": scores.overall, **scores.by_category, "chance": chance_of_answers(asked).overall}


def write_predictions(items: Sequence[ShapesQuestion], answers: Answers, folder: Path) -> None:
    """`shapes.jsonl`: question, answer, what it should be, and whether it is, a line a question."""
    with (folder / "shapes.jsonl").open("w", encoding="utf-8") as file:
        for item in items:
            told = {"question": item.world.text, "answer": answers[item.id], "wanted": item.world.answer}
            file.write(json.dumps(told | {"right": is_right(item.world, answers[item.id])}) + "\n")


BENCHMARK = register_benchmark(
    Benchmark(
        name="shapes",
        title="The embedded world: questions about drawn scenes",
        layout="",
        source="comes with the package",
        read=read,
        score=score,
        write_predictions=write_predictions,
        options={"split": Choice("test", "train"), "per_topic": Number(100, 1, 10_000, integer=True)},
    )
)
