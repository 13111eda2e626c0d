"""Benchmark: names and categories of held-out emoji.

janus-evaluate --benchmark examples.emoji.understanding_benchmark:emoji --data runs/emoji ...
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores
from janus_jax.evaluation.benchmark_files import read_json_lines
from janus_jax.evaluation.registry import register_benchmark
from janus_jax.evaluation.understanding.prompts import user_message
from janus_jax.storage import write_json


@dataclass(frozen=True, kw_only=True)
class EmojiQuestion(Question):
    """A question with its kind, expected answer, and the probability that a guess is correct."""

    kind: str
    answer: str
    chance: float


def read(data: Path, options: Options) -> list[EmojiQuestion]:
    """Returns the questions in `test.jsonl`."""
    data = data / "data"
    return [
        EmojiQuestion(
            id=f"{number:05}",
            messages=user_message([entry.image_path(data / "pictures", entry.text("image"))], entry.text("text")),
            kind=entry.text("kind"),
            answer=entry.text("answer"),
            chance=float(entry.get("chance", "a number")),
        )
        for number, entry in enumerate(read_json_lines(data / "test.jsonl"))
    ]


def score(questions: Sequence[EmojiQuestion], answers: Answers, options: Options) -> Scores:
    """Returns the fraction of exact answers of each kind, followed by that of guesses.

    `name without tone` is the fraction of free answers that name the right emoji with any skin tone.
    """
    scores: dict[str, float] = {}
    for kind in dict.fromkeys(question.kind for question in questions):
        asked = [question for question in questions if question.kind == kind]
        scores[kind] = float(np.mean([answers[one.id].strip() == one.answer for one in asked]))
        scores[f"{kind}, chance"] = float(np.mean([one.chance for one in asked]))
        if kind == "name":
            right = [_without_tone(answers[one.id]) == _without_tone(one.answer) for one in asked]
            scores["name without tone"] = float(np.mean(right))
    return scores


def _without_tone(name: str) -> str:
    return name.rsplit(", ", 1)[0] if name.endswith(" skin tone") else name.strip()


def write_predictions(questions: Sequence[EmojiQuestion], answers: Answers, folder: Path) -> None:
    """Writes `emoji.json`: each question with the model's answer and the expected one."""
    rows = {
        one.id: {"question": one.messages[0]["content"], "answer": answers[one.id], "expected": one.answer}
        for one in questions
    }
    write_json(folder / "emoji.json", rows)


BENCHMARK = register_benchmark(
    Benchmark(
        name="emoji",
        title="Names and categories of held-out emoji",
        layout="data/test.jsonl\ndata/pictures/*.png",
        source="python -m examples.emoji.tables",
        read=read,
        score=score,
        write_predictions=write_predictions,
    )
)
