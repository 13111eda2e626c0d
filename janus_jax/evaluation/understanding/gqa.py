"""GQA (arXiv 1902.09506): questions generated from scene graphs, with one-word answers; the balanced test-dev split."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, accuracy_by, percent
from janus_jax.evaluation.benchmark_files import Entry, read_named_entries
from janus_jax.evaluation.understanding.prompts import short_answer_prompt, user_message

_FILE = "testdev_balanced_questions.json"


@dataclass(frozen=True, kw_only=True)
class GqaQuestion(Question):
    """A GQA question.

    Attributes:
      answer: The correct answer.
      structure: Structural type, such as "verify"; "" if the file has none.
    """

    answer: str
    structure: str


def read(data: Path, options: Options) -> list[GqaQuestion]:
    """Reads the questions in file order."""
    return [_question(name, entry, data / "images") for name, entry in read_named_entries(data / _FILE)]


def _question(name: str, entry: Entry, images: Path) -> GqaQuestion:
    image = entry.image_path(images, f"{entry.id('imageId')}.jpg")
    types = entry.values.get("types")
    return GqaQuestion(
        id=name,
        messages=user_message([image], short_answer_prompt(entry.text("question"))),
        answer=entry.text("answer"),
        structure=str(types.get("structural", "")) if isinstance(types, dict) else "",
    )


def normalize(answer: str) -> str:
    """Returns the answer in lower case without a final period."""
    return answer.strip().rstrip(".").lower()


def score(questions: Sequence[GqaQuestion], answers: Answers, options: Options) -> Scores:
    """Returns the exact-match accuracy in percent, in total and by structural type."""
    correct = [(q.structure, normalize(answers[q.id]) == q.answer) for q in questions]
    return {"accuracy": percent([one for _, one in correct]), **accuracy_by("{}.accuracy", sorted(correct))}


def write_predictions(questions: Sequence[GqaQuestion], answers: Answers, folder: Path) -> None:
    """Writes `testdev_balanced_predictions.json`, a list of {"questionId", "prediction"}."""
    content = [{"questionId": q.id, "prediction": normalize(answers[q.id])} for q in questions]
    (folder / "testdev_balanced_predictions.json").write_text(json.dumps(content), encoding="utf-8")


BENCHMARK = Benchmark(
    name="gqa",
    title="GQA: 12,578 questions of the balanced test-dev split, answered by a word",
    layout=f"{_FILE}\nimages/*.jpg",
    source="https://cs.stanford.edu/people/dorarad/gqa/download.html",
    read=read,
    score=score,
    official_sizes=(12_578,),
    write_predictions=write_predictions,
    published={"accuracy": (59.1, 60.3, 59.3, 62.0)},
)
