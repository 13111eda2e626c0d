"""MMBench (arXiv 2307.06281): multiple-choice questions with up to four options.

Each question is asked once for every rotation of its options. The vanilla score is the accuracy over all rotations. For
the circular score, a question is correct if all its rotations are answered correctly.
"""

import base64
import binascii
import csv
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, accuracy_by, percent
from janus_jax.evaluation.benchmark_files import Entry
from janus_jax.evaluation.understanding.prompts import multiple_choice_prompt, parse_choice, user_message
from janus_jax.files import reading

_LETTERS = "ABCDEFGH"
_ROTATION = 1_000_000
"""MMBench's authors add this number to a question's index for each rotation of its options."""
_MAX_FIELD_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class MmbenchQuestion(Question):
    """A question with its options in the original or a rotated order.

    Attributes:
      number: Index in the table, plus `_ROTATION` for each rotation.
      text: Hint and question.
      choices: Options by letter.
      answer: The correct letter; "" if it is not published.
      category: Category of the question; "" if the table has none.
    """

    number: int
    text: str
    choices: Mapping[str, str]
    answer: str
    category: str


def read(data: Path, options: Options) -> list[MmbenchQuestion]:
    """Reads the only table in the folder. Returns its questions with all rotations of their options."""
    tables = sorted(data.glob("*.tsv")) if data.is_dir() else []
    if len(tables) != 1:
        names = ", ".join(table.name for table in tables) or "none"
        raise JanusError(f"{data} contains {len(tables)} tables ({names}); expected one *.tsv of MMBench.")
    rows = list(_read_rows(tables[0]))
    images = _decode_images(rows)
    questions = [_question(number, entry, images[number]) for number, entry in rows]
    # The official tables already contain the rotations.
    if all(q.number < _ROTATION for q in questions):
        questions = [rotation for q in questions for rotation in rotations(q)]
    return questions


def _read_rows(table: Path) -> Iterator[tuple[int, Entry]]:
    csv.field_size_limit(_MAX_FIELD_BYTES)  # The default of 128 KiB is too small for base64 images.
    with reading(table), table.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t"), 1):
            values = {name: value for name, value in row.items() if name and isinstance(value, str) and value.strip()}
            entry = Entry(f"{table}, row {number}", values)
            index = entry.text("index", "an integer").removesuffix(".0")
            if not index.isdigit():
                raise JanusError(f"{entry.where}: index is {index!r:.80}; expected an integer.")
            yield int(index), entry


def _decode_images(rows: Sequence[tuple[int, Entry]]) -> dict[int, bytes]:
    """Returns image files by row index. A row contains an image, or the index of another row with the same image."""
    entries = dict(rows)
    images: dict[int, bytes] = {}
    for index, entry in rows:
        owner, text = index, _image_text(entry)
        visited = {owner}
        while text.isdecimal():
            owner = int(text)
            if owner in visited or owner not in entries:
                raise JanusError(
                    f"{entry.where}: image is the index {text}, which leads to no row with an image; expected an "
                    f"image in base64."
                )
            visited.add(owner)
            text = _image_text(entries[owner])
        if owner not in images:
            try:
                images[owner] = base64.b64decode(text, validate=True)
            except binascii.Error:
                where = entries[owner].where
                raise JanusError(f"{where}: image is {text[:40]!r}; expected an image in base64.") from None
        images[index] = images[owner]
    return images


def _image_text(entry: Entry) -> str:
    # Some tools write the index as a number with a decimal point.
    return entry.text("image", "an image in base64").strip().removesuffix(".0")


def _question(number: int, entry: Entry, image: bytes) -> MmbenchQuestion:
    choices = {letter: entry.values[letter] for letter in _LETTERS if letter in entry.values}
    if len(choices) < 2:
        raise JanusError(f"{entry.where}: the fields A, B ... contain {len(choices)} options; expected at least two.")
    text, hint = entry.text("question"), str(entry.values.get("hint", ""))
    return MmbenchQuestion(
        id=str(number),
        group=str(number % _ROTATION),
        max_new_tokens=64,
        messages=user_message([image], multiple_choice_prompt(text, choices, hint)),
        number=number,
        text=f"Hint: {hint}\n{text}" if hint else text,
        choices=choices,
        answer=entry.one_of("answer", tuple(choices)) if "answer" in entry.values else "",
        category=str(entry.values.get("category", "")),
    )


def rotations(question: MmbenchQuestion) -> list[MmbenchQuestion]:
    """Returns one question for every rotation of the options, starting with the original order.

    As in the official tables, a rotation moves each option to the next letter, and a last option that refers to the
    other options keeps its letter.
    """
    letters, texts = list(question.choices), list(question.choices.values())
    count = len(letters)
    while count > 2 and _refers_to_others(texts[count - 1], letters[: count - 1]):
        count -= 1
    images = question.messages[0].get("images", ())
    rotated = []
    for shift in range(count):
        order = [(index - shift) % count for index in range(count)] + list(range(count, len(letters)))
        choices = {letter: texts[index] for letter, index in zip(letters, order, strict=True)}
        number = question.number + shift * _ROTATION
        rotated.append(
            dataclasses.replace(
                question,
                id=str(number),
                messages=user_message(images, multiple_choice_prompt(question.text, choices)),
                number=number,
                choices=choices,
                answer=letters[order.index(letters.index(question.answer))] if question.answer else "",
            )
        )
    return rotated


def _refers_to_others(text: str, others: Sequence[str]) -> bool:
    """Returns whether an option contains the word "all" or "none", or the letters of all other options.

    MMBench's authors use this rule (`build_circular.py` of VLMEvalKit). It gives exactly the 4,377 rows of their table
    of July 2023, in which 53 of 1,176 questions have a last option that keeps its letter.
    """
    words = text.replace(",", " ").split()
    return set(others) <= set(words) or bool({"all", "none"} & {word.lower() for word in words})


def score(questions: Sequence[MmbenchQuestion], answers: Answers, options: Options) -> Scores:
    """Returns accuracies in percent, or no scores if the table has no answers.

    Returns:
      `vanilla`: Share of correct answers to all rotations, which the papers report.
      `original_order`: Share of correct answers to the questions with their options in the original order.
      `circular`: Share of questions that are answered correctly in all rotations.
      `category.NAME`: The vanilla score of a category.
    """
    if not all(q.answer for q in questions):
        return {}
    correct = {q.id: parse_choice(answers[q.id], q.choices) == q.answer for q in questions}
    circular: dict[str, bool] = {}
    for q in questions:
        circular[q.group] = circular.get(q.group, True) and correct[q.id]
    scores = {
        "vanilla": percent(list(correct.values())),
        "original_order": percent([correct[q.id] for q in questions if q.number < _ROTATION]),
        "circular": percent(list(circular.values())),
    }
    by_category = sorted((q.category, correct[q.id]) for q in questions)
    return scores | dict(accuracy_by("category.{}", by_category))


def write_predictions(questions: Sequence[MmbenchQuestion], answers: Answers, folder: Path) -> None:
    """Writes `mmbench.tsv`: index, question, options, answer, category and prediction, without images."""
    letters = sorted({letter for q in questions for letter in q.choices})
    with (folder / "mmbench.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["index", "question", *letters, "answer", "category", "prediction"])
        for q in questions:
            choices = [q.choices.get(letter, "") for letter in letters]
            table.writerow([q.number, q.text, *choices, q.answer, q.category, answers[q.id]])


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench: multiple-choice questions; the papers' score is the vanilla score of the English dev table",
    layout="""*.tsv, one table (such as MMBench_DEV_EN.tsv) of
  index, question, hint, A, B, C, D, answer, category, image (in base64)""",
    source="https://github.com/open-compass/MMBench",
    read=read,
    score=score,
    official_sizes=(4_329, 4_377, 6_666),  # The dev table, its first version of July 2023, and the test table.
    write_predictions=write_predictions,
    published={"vanilla": (69.4, 74.9, 75.5, 79.2)},
)
