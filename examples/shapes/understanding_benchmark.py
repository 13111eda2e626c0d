"""Benchmark: one-word questions about scenes of the shapes dataset. Nothing is downloaded."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.shapes.dataset import Question as SceneQuestion
from examples.shapes.dataset import Split, chance_of_answers, is_correct, render, sample_questions, score_answers
from examples.shapes.dataset.records import encode_png
from janus_jax.evaluation.benchmark import Answers, Benchmark, Choice, Number, Options, Question, Scores
from janus_jax.evaluation.registry import register_benchmark
from janus_jax.evaluation.understanding.prompts import user_message

SEED = 1 << 16
"""Seed of questions and prompts. The training data have other seeds."""

_MAX_ANSWER_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class ShapesQuestion(Question):
    """A benchmark question with its scene and answer."""

    scene_question: SceneQuestion = field(repr=False)


def benchmark_questions(questions: Sequence[SceneQuestion]) -> list[ShapesQuestion]:
    """Returns the benchmark questions for questions about scenes; their images are rendered."""
    return [
        ShapesQuestion(
            id=f"{number:05}",
            messages=user_message([encode_png(render(question.scene))], question.text),
            max_new_tokens=_MAX_ANSWER_TOKENS,
            scene_question=question,
        )
        for number, question in enumerate(questions)
    ]


def read(data: Path, options: Options) -> list[ShapesQuestion]:
    """Returns random questions, the same number per topic. Those of "test" are about held-out combinations."""
    return benchmark_questions(sample_questions(Split(options["split"]), int(options["per_topic"]), SEED))


def score(items: Sequence[ShapesQuestion], answers: Answers, options: Options) -> Scores:
    """Returns the fraction of correct answers: over all topics, per topic, and of random guesses."""
    questions = [item.scene_question for item in items]
    scores = score_answers(questions, [answers[item.id] for item in items])
    return {"overall": scores.overall, **scores.by_category, "chance": chance_of_answers(questions).overall}


def write_predictions(items: Sequence[ShapesQuestion], answers: Answers, folder: Path) -> None:
    """Writes `shapes.jsonl`: one line per question with the model's answer and the expected one."""
    with (folder / "shapes.jsonl").open("w", encoding="utf-8") as file:
        for item in items:
            question, answer = item.scene_question, answers[item.id]
            line = {"question": question.text, "answer": answer, "expected": question.answer}
            file.write(json.dumps(line | {"correct": is_correct(question, answer)}) + "\n")


BENCHMARK = register_benchmark(
    Benchmark(
        name="shapes",
        title="Shapes dataset: questions about scenes",
        layout="",
        source="generated",
        read=read,
        score=score,
        write_predictions=write_predictions,
        options={"split": Choice("test", "train"), "per_topic": Number(100, 1, 10_000, integer=True)},
    )
)
