"""SEED-Bench (arXiv 2307.16125): questions with four options; those about pictures, not those about videos."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, check_ids, published
from janus_jax.evaluation.understanding.benchmark_files import Entry, json_object, percent
from janus_jax.evaluation.understanding.prompts import about, choice_question, chosen_letter, lettered

_FILE = "SEED-Bench.json"
_LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True, kw_only=True)
class SeedQuestion(Question):
    """A question with its options by letter, the right letter and the name of its kind."""

    choices: dict[str, str]
    answer: str
    kind: str


def read(data: Path, options: Options) -> list[SeedQuestion]:
    """The questions about pictures, in the order of the file."""
    whole = json_object(data / _FILE)
    names = whole.values.get("question_type")
    kinds = {str(number): str(name) for name, number in names.items()} if isinstance(names, dict) else {}
    questions = [
        _question(entry, data, kinds)
        for entry in whole.entries("questions")
        if entry.one_of("data_type", ("image", "video")) == "image"
    ]
    check_ids(questions, data / _FILE)
    return questions


def _question(entry: Entry, data: Path, kinds: dict[str, str]) -> SeedQuestion:
    # Options are numbers now and then.
    choices = lettered([str(entry.get(f"choice_{letter.lower()}", "an option")) for letter in _LETTERS])
    image = entry.picture(data / "SEED-Bench-image", entry.text("data_id", "the name of a picture"))
    kind = entry.id("question_type_id")
    return SeedQuestion(
        id=entry.id("question_id"),
        max_new_tokens=64,
        messages=about([image], choice_question(entry.text("question"), choices)),
        choices=choices,
        answer=entry.one_of("answer", _LETTERS),
        kind=kinds.get(kind, kind),
    )


def score(questions: Sequence[SeedQuestion], answers: Answers, options: Options) -> Scores:
    """Accuracy in percent, of all pictures and by kind of question."""
    right = {q.id: chosen_letter(answers[q.id], q.choices) == q.answer for q in questions}
    kinds = dict.fromkeys(q.kind for q in questions)
    by_kind = {f"{kind}.accuracy": percent([right[q.id] for q in questions if q.kind == kind]) for kind in kinds}
    return {"accuracy": percent(list(right.values())), **by_kind}


def write_predictions(questions: Sequence[SeedQuestion], answers: Answers, folder: Path) -> None:
    """`seed_image.jsonl`: a line {"question_id", "prediction"} a question; the prediction is a letter, or empty."""
    with (folder / "seed_image.jsonl").open("w", encoding="utf-8") as file:
        for q in questions:
            letter = chosen_letter(answers[q.id], q.choices)
            file.write(json.dumps({"question_id": q.id, "prediction": letter}) + "\n")


BENCHMARK = Benchmark(
    name="seed",
    title="SEED-Bench: 14,233 questions with four options about pictures",
    layout=f"""{_FILE}
SEED-Bench-image/*""",
    source="https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
    read=read,
    score=score,
    write_predictions=write_predictions,
    published=published(accuracy=(63.7, 70.5, 68.3, 72.1)),
)
