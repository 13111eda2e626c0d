"""MMMU (arXiv 2311.16502): questions of college courses in 30 subjects, about up to seven pictures.

Its validation part, for the test part's answers are secret.
"""

import ast
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, check_ids, published
from janus_jax.evaluation.understanding.benchmark_files import Entry, entries, json_file, json_lines, percent
from janus_jax.evaluation.understanding.mmmu_answers import SEED, is_right, read_letter
from janus_jax.evaluation.understanding.prompts import LETTER_ANSWER, about, choice_question, lettered, short_question
from janus_jax.files import reading
from janus_jax.processing import ImageSource, Message
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

_MOST_PICTURES = 7
_MENTION = re.compile(r"<image (\d+)>")
_NO_LITERAL: tuple[type[Exception], ...] = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
_ID = re.compile(r"validation_(.+)_\d+")


@dataclass(frozen=True, kw_only=True)
class MmmuQuestion(Question):
    """A question.

    Attributes:
      subject: of the course.
      choices: options by letter; none of an open question.
      answer: the right letter, or texts of which each is right.
    """

    subject: str
    choices: dict[str, str]
    answer: tuple[str, ...]


def read(data: Path, options: Options) -> list[MmmuQuestion]:
    """The questions of all validation files under the folder, subject by subject."""
    files = sorted(path for kind in ("parquet", "jsonl", "json") for path in data.rglob(f"*validation*.{kind}"))
    if not files:
        raise JanusError(
            f"{data} holds no *validation*.parquet, .json or .jsonl; look at the layout that --list shows."
        )
    questions = [_question(entry, file.parent, options["prompt"]) for file in files for entry in _entries(file)]
    check_ids(questions, data)
    return questions


def _entries(file: Path) -> Iterator[Entry]:
    if file.suffix == ".parquet":
        return _parquet(file)
    return json_lines(file) if file.suffix == ".jsonl" else entries(str(file), json_file(file))


def _parquet(file: Path) -> Iterator[Entry]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise JanusError(f"{file} needs pyarrow to be read; pip install 'janus_jax[parquet]'.") from error
    try:
        with reading(file):
            rows = pyarrow.parquet.read_table(file).to_pylist()
    # pyarrow has kinds of its own, not all of them among the usual ones.
    except pyarrow.ArrowException as error:
        raise JanusError(f"{file} is damaged ({str(error)[:100]}); fetch it again.") from error
    for number, row in enumerate(rows, 1):
        yield Entry(f"{file}, row {number}", row)


def _question(entry: Entry, folder: Path, prompt: str) -> MmmuQuestion:
    name = entry.text("id")
    named = _ID.fullmatch(name)
    if not named:
        raise JanusError(f"{entry.where}: id is {name!r:.80}; validation_SUBJECT_NUMBER is expected.")
    choices: dict[str, str] = {}
    if entry.one_of("question_type", ("multiple-choice", "open")) == "multiple-choice":
        choices = lettered(_list(entry, "options"))
        if len(choices) < 2:
            raise JanusError(f"{entry.where}: options holds {len(choices)} options; two or more are expected.")
    answer: tuple[str, ...]
    if choices:
        answer = (entry.one_of("answer", tuple(choices)),)
    else:
        answer = tuple(_list(entry, "answer")) if _is_list(entry.values.get("answer")) else (entry.text("answer"),)
    ask = _as_officially if prompt == "official" else _as_authors
    return MmmuQuestion(
        id=name,
        max_new_tokens=256,
        messages=ask(entry.text("question"), choices, _pictures(entry, folder)),
        subject=named[1],
        choices=choices,
        answer=answer,
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.strip()[:1] == "[")


def _list(entry: Entry, name: str) -> list[str]:
    """A list of texts, itself or as Python writes one."""
    value = entry.get(name, "a list")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except _NO_LITERAL:
            value = None
    if not isinstance(value, list):
        raise JanusError(
            f"{entry.where}: {name} is {entry.values[name]!r:.80}; a list as Python writes it is expected."
        )
    return [str(item) for item in value]


def _pictures(entry: Entry, folder: Path) -> dict[int, ImageSource]:
    """The pictures of an entry by number: paths, or bytes where the file holds them."""
    pictures: dict[int, ImageSource] = {}
    for number in range(1, _MOST_PICTURES + 1):
        name = f"image_{number}"
        value = entry.values.get(name)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            pictures[number] = value
        elif isinstance(value, str) and value:
            pictures[number] = entry.picture(folder, value)
        elif value is not None:
            raise JanusError(f"{entry.where}: {name} is {value!r:.80}; a path or the bytes of a picture are expected.")
    if not pictures:
        raise JanusError(f"{entry.where}: the field image_1 is missing (a picture is expected).")
    return pictures


def _as_authors(question: str, choices: dict[str, str], pictures: dict[int, ImageSource]) -> list[Message]:
    """As Janus' authors ask: all pictures first; the question still names them "<image 1>"."""
    text = choice_question(question, choices) if choices else f"{question}\nAnswer the question directly."
    return about(list(pictures.values()), text)


def _as_officially(question: str, choices: dict[str, str], pictures: dict[int, ImageSource]) -> list[Message]:
    """As the benchmark's authors ask, each picture where it is first mentioned; those that never are come first."""
    lines = [f"({letter}) {option}" for letter, option in choices.items()]
    text = "\n".join([question, *lines, "", LETTER_ANSWER]) if choices else short_question(question)
    shown: list[int] = []

    def show(mention: re.Match[str]) -> str:
        number = int(mention[1])
        if number not in pictures or number in shown:
            return mention[0]
        shown.append(number)
        return IMAGE_PLACEHOLDER

    text = _MENTION.sub(show, text)
    first = [number for number in pictures if number not in shown]
    images = [pictures[number] for number in (*first, *shown)]
    return [{"role": "user", "content": f"{IMAGE_PLACEHOLDER * len(first)}{text}", "images": images}]


def read_answers(questions: Sequence[MmmuQuestion], answers: Answers) -> dict[str, str]:
    """Letters, and the whole answers to open questions. Letters are drawn in the order of the questions."""
    chance = random.Random(SEED)
    return {q.id: read_letter(answers[q.id], q.choices, chance) if q.choices else answers[q.id] for q in questions}


def score(questions: Sequence[MmmuQuestion], answers: Answers, options: Options) -> Scores:
    """Accuracy over all questions, in percent; also by subject."""
    found = read_answers(questions, answers)
    right = {q.id: found[q.id] in q.answer if q.choices else is_right(found[q.id], q.answer) for q in questions}
    by_subject = {
        f"subject.{subject}": percent([right[q.id] for q in questions if q.subject == subject])
        for subject in dict.fromkeys(q.subject for q in questions)
    }
    return {"accuracy": percent(list(right.values())), **by_subject}


def write_predictions(questions: Sequence[MmmuQuestion], answers: Answers, folder: Path) -> None:
    """`mmmu_val.json`: {id: letter, or the answer to an open question}."""
    content = json.dumps(read_answers(questions, answers), indent=2)
    (folder / "mmmu_val.json").write_text(content, encoding="utf-8")


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU: 900 questions of 30 subjects, its validation part",
    layout="""SUBJECT/validation-*.parquet (needs pyarrow), as the hub has them;
or *validation*.json (a list) or *validation*.jsonl of
  id, question, options, answer, question_type, image_1 ... image_7 (paths beside the file)""",
    source="https://huggingface.co/datasets/MMMU/MMMU",
    read=read,
    score=score,
    write_predictions=write_predictions,
    options={"prompt": ("authors", "official")},
    published=published(accuracy=(30.5, 29.3, 36.3, 41.0)),
)
