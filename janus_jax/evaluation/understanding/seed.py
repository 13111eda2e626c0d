"""SEED-Bench (arXiv 2307.16125): multiple-choice questions with four options. Questions about videos are omitted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, accuracy_by, percent
from janus_jax.evaluation.benchmark_files import Entry, read_json_entry, write_json_lines
from janus_jax.evaluation.understanding.prompts import (
    letter_choices,
    multiple_choice_prompt,
    parse_choice,
    user_message,
)

_FILE = "SEED-Bench.json"
_LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True, kw_only=True)
class SeedQuestion(Question):
    """A SEED-Bench question.

    Attributes:
      official_id: Id in the official file. Two questions have the same id there.
      choices: Options by letter.
      answer: The correct letter.
      kind: Name of the question's type.
    """

    official_id: str
    choices: dict[str, str]
    answer: str
    kind: str


def read(data: Path, options: Options) -> list[SeedQuestion]:
    """Reads the questions about images, in file order."""
    content = read_json_entry(data / _FILE)
    types = content.values.get("question_type")
    type_names = {str(number): str(name) for name, number in types.items()} if isinstance(types, dict) else {}
    occurrences = Counter[str]()
    questions = []
    for entry in content.entries("questions"):
        if entry.one_of("data_type", ("image", "video")) == "image":
            official_id = entry.id("question_id")
            occurrences[official_id] += 1
            questions.append(_question(entry, data, type_names, occurrences[official_id]))
    return questions


def _question(entry: Entry, data: Path, type_names: dict[str, str], occurrence: int) -> SeedQuestion:
    official_id = entry.id("question_id")
    # Some options are numbers in the file.
    choices = letter_choices([str(entry.get(f"choice_{letter.lower()}", "an option")) for letter in _LETTERS])
    image = entry.image_path(data / "SEED-Bench-image", entry.text("data_id", "the name of an image"))
    type_id = entry.id("question_type_id")
    return SeedQuestion(
        id=official_id if occurrence == 1 else f"{official_id}#{occurrence}",
        official_id=official_id,
        max_new_tokens=64,
        messages=user_message([image], multiple_choice_prompt(entry.text("question"), choices)),
        choices=choices,
        answer=entry.one_of("answer", _LETTERS),
        kind=type_names.get(type_id, type_id),
    )


def score(questions: Sequence[SeedQuestion], answers: Answers, options: Options) -> Scores:
    """Returns the accuracy in percent, in total and by question type."""
    correct = [(q.kind, parse_choice(answers[q.id], q.choices) == q.answer) for q in questions]
    return {"accuracy": percent([one for _, one in correct]), **accuracy_by("{}.accuracy", correct)}


def write_predictions(questions: Sequence[SeedQuestion], answers: Answers, folder: Path) -> None:
    """Writes `seed_image.jsonl` with a line {"question_id", "prediction"} per question, in the official order.

    A prediction is a letter, or "" if the answer chooses no option.
    """
    lines = [{"question_id": q.official_id, "prediction": parse_choice(answers[q.id], q.choices)} for q in questions]
    write_json_lines(folder / "seed_image.jsonl", lines)


BENCHMARK = Benchmark(
    name="seed",
    title="SEED-Bench: 14,233 questions with four options about images",
    layout=f"{_FILE}\nSEED-Bench-image/*",
    source="https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
    read=read,
    score=score,
    official_sizes=(14_233,),
    write_predictions=write_predictions,
    published={"accuracy": (63.7, 70.5, 68.3, 72.1)},
)
