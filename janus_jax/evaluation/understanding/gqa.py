"""GQA (arXiv 1902.09506): questions made from scene graphs, answered by a word; its balanced test-dev part."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, check_ids, published
from janus_jax.evaluation.understanding.benchmark_files import named_entries, percent
from janus_jax.evaluation.understanding.prompts import about, short_question

_FILE = "testdev_balanced_questions.json"


@dataclass(frozen=True, kw_only=True)
class GqaQuestion(Question):
    """A question, its answer, and what kind of structure it has ("" where the file does not tell)."""

    answer: str
    structure: str


def read(data: Path, options: Options) -> list[GqaQuestion]:
    """The questions of the file, in its order."""
    questions = []
    for name, entry in named_entries(data / _FILE):
        image = entry.picture(data / "images", f"{entry.id('imageId')}.jpg")
        types = entry.values.get("types")
        questions.append(
            GqaQuestion(
                id=name,
                messages=about([image], short_question(entry.text("question"))),
                answer=entry.text("answer"),
                structure=str(types.get("structural", "")) if isinstance(types, dict) else "",
            )
        )
    check_ids(questions, data / _FILE)
    return questions


def prediction(answer: str) -> str:
    """An answer as it is compared: in lower case, without a full stop at its end."""
    return answer.strip().rstrip(".").lower()


def score(questions: Sequence[GqaQuestion], answers: Answers, options: Options) -> Scores:
    """The share of answers that are the right one, letter by letter, in percent; also by structure."""
    right = {q.id: prediction(answers[q.id]) == q.answer for q in questions}
    structures = sorted({q.structure for q in questions} - {""})
    by_structure = {
        f"{kind}.accuracy": percent([right[q.id] for q in questions if q.structure == kind]) for kind in structures
    }
    return {"accuracy": percent(list(right.values())), **by_structure}


def write_predictions(questions: Sequence[GqaQuestion], answers: Answers, folder: Path) -> None:
    """`testdev_balanced_predictions.json`: a list of {"questionId", "prediction"}."""
    content = [{"questionId": q.id, "prediction": prediction(answers[q.id])} for q in questions]
    (folder / "testdev_balanced_predictions.json").write_text(json.dumps(content), encoding="utf-8")


BENCHMARK = Benchmark(
    name="gqa",
    title="GQA: 12,578 questions of the balanced test-dev part, answered by a word",
    layout=f"""{_FILE}
images/*.jpg""",
    source="https://cs.stanford.edu/people/dorarad/gqa/download.html",
    read=read,
    score=score,
    write_predictions=write_predictions,
    published=published(accuracy=(59.1, 60.3, 59.3, 62.0)),
)
