"""MMBench (arXiv 2307.06281): questions with up to four options; circular: asked once for each rotation of them."""

import base64
import binascii
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, check_ids, published
from janus_jax.evaluation.understanding.benchmark_files import Entry, percent
from janus_jax.evaluation.understanding.prompts import about, choice_question, chosen_letter
from janus_jax.files import reading

_LETTERS = "ABCDEFGH"
_ROTATION = 1_000_000
"""What the authors add to a question's index for each rotation of its options."""
_LARGEST_FIELD = 2**28


@dataclass(frozen=True, kw_only=True)
class MmbenchQuestion(Question):
    """A question, or a rotation of one.

    Attributes:
      number: its index in the table.
      text: the question.
      choices: options by letter.
      answer: the letter that is right; "" where that is secret.
      category: of the question.
    """

    number: int
    text: str
    choices: Mapping[str, str]
    answer: str
    category: str


def read(data: Path, options: Options) -> list[MmbenchQuestion]:
    """The questions of the folder's one table; with their rotations, if circular."""
    tables = sorted(data.glob("*.tsv")) if data.is_dir() else []
    if len(tables) != 1:
        there = ", ".join(table.name for table in tables) or "none"
        raise JanusError(f"{data} holds {len(tables)} tables ({there}); one *.tsv of MMBench is expected.")
    rows = list(_rows(tables[0]))
    pictures = _pictures(rows)
    questions = [_question(row, pictures) for row in rows]
    plain = [q for q in questions if q.number < _ROTATION]
    if options["circular"] == "true":
        # Some tables hold the rotations themselves.
        if len(plain) == len(questions):
            questions = [rotation for q in plain for rotation in rotations(q)]
    else:
        questions = plain
    check_ids(questions, tables[0])
    return questions


def _rows(table: Path) -> Iterator[tuple[int, Entry]]:
    csv.field_size_limit(_LARGEST_FIELD)  # Of base64 pictures; the usual limit is 128 KiB.
    with reading(table), table.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t"), 1):
            values = {name: value for name, value in row.items() if name and isinstance(value, str) and value.strip()}
            entry = Entry(f"{table}, row {number}", values)
            index = entry.text("index", "a whole number").removesuffix(".0")
            if not index.isdigit():
                raise JanusError(f"{entry.where}: index is {index!r:.80}; a whole number is expected.")
            yield int(index), entry


def _pictures(rows: Sequence[tuple[int, Entry]]) -> dict[int, bytes]:
    """By index. In place of a picture that an earlier row has, a row may have that row's index."""
    pictures: dict[int, bytes] = {}
    for index, entry in rows:
        text = entry.text("image", "a picture in base64")
        if text.isdigit() and int(text) in pictures:
            pictures[index] = pictures[int(text)]
            continue
        try:
            pictures[index] = base64.b64decode(text, validate=True)
        except binascii.Error:
            raise JanusError(f"{entry.where}: image is {text[:40]!r}; a picture in base64 is expected.") from None
    return pictures


def _question(row: tuple[int, Entry], pictures: Mapping[int, bytes]) -> MmbenchQuestion:
    index, entry = row
    choices = {letter: entry.values[letter].strip() for letter in _LETTERS if letter in entry.values}
    if len(choices) < 2:
        raise JanusError(f"{entry.where}: the fields A, B ... hold {len(choices)} options; two or more are expected.")
    text, hint = entry.text("question"), str(entry.values.get("hint", ""))
    return MmbenchQuestion(
        id=str(index),
        group=str(index % _ROTATION),
        max_new_tokens=64,
        messages=about([pictures[index]], choice_question(text, choices, hint)),
        number=index,
        text=f"Hint: {hint}\n{text}" if hint else text,
        choices=choices,
        answer=entry.one_of("answer", tuple(choices)) if "answer" in entry.values else "",
        category=str(entry.values.get("category", "")),
    )


def rotations(question: MmbenchQuestion) -> list[MmbenchQuestion]:
    """The question with its options in every rotation, itself the first."""
    letters, texts = list(question.choices), list(question.choices.values())
    images = question.messages[0].get("images", ())
    turned = []
    for by in range(len(letters)):
        choices = dict(zip(letters, [*texts[by:], *texts[:by]], strict=True))
        number = question.number + by * _ROTATION
        turned.append(
            MmbenchQuestion(
                id=str(number),
                group=question.group,
                max_new_tokens=question.max_new_tokens,
                messages=about(images, choice_question(question.text, choices)),
                number=number,
                text=question.text,
                choices=choices,
                answer=letters[letters.index(question.answer) - by] if question.answer else "",
                category=question.category,
            )
        )
    return turned


def score(questions: Sequence[MmbenchQuestion], answers: Answers, options: Options) -> Scores:
    """Accuracy in percent, also by category; circular, of questions that are right in every rotation.

    None where the table holds no answers.
    """
    if not all(q.answer for q in questions):
        return {}
    right = {q.id: chosen_letter(answers[q.id], q.choices) == q.answer for q in questions}
    plain = {q.group: right[q.id] for q in questions if q.number < _ROTATION}
    scores = {"vanilla": percent(list(plain.values()))}
    if options["circular"] == "true":
        whole: dict[str, bool] = {}
        for q in questions:
            whole[q.group] = whole.get(q.group, True) and right[q.id]
        scores["circular"] = percent(list(whole.values()))
        plain = whole
    categories = {q.group: q.category for q in questions}
    for category in sorted(set(categories.values()) - {""}):
        scores[f"category.{category}"] = percent([plain[group] for group in plain if categories[group] == category])
    return scores


def write_predictions(questions: Sequence[MmbenchQuestion], answers: Answers, folder: Path) -> None:
    """`mmbench.tsv`: index, question, options, answer, category and prediction, without the pictures."""
    letters = sorted({letter for q in questions for letter in q.choices})
    with (folder / "mmbench.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["index", "question", *letters, "answer", "category", "prediction"])
        for q in questions:
            row = [q.number, q.text, *(q.choices.get(letter, "") for letter in letters), q.answer, q.category]
            table.writerow([*row, answers[q.id]])


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench: questions with options; the papers' figure is of the English dev table, not circular",
    layout="""*.tsv, one table (such as MMBench_DEV_EN.tsv) of
  index, question, hint, A, B, C, D, answer, category, image (in base64)""",
    source="https://github.com/open-compass/MMBench",
    read=read,
    score=score,
    write_predictions=write_predictions,
    options={"circular": ("false", "true")},
    published=published(vanilla=(69.4, 74.9, 75.5, 79.2)),
)
