"""MMMU (arXiv 2311.16502): questions from college courses in 30 subjects, with up to seven images each.

Uses the validation split, because the answers of the test split are not published.
"""

import ast
import json
import random
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Choice, Options, Question, Scores, accuracy_by, percent
from janus_jax.evaluation.benchmark_files import Entry, entries, read_json_lines, read_json_value, read_parquet
from janus_jax.evaluation.understanding.mmmu_answers import SEED, is_correct, parse_letter
from janus_jax.evaluation.understanding.prompts import (
    LETTER_ANSWER,
    letter_choices,
    multiple_choice_prompt,
    parse_choice,
    short_answer_prompt,
    user_message,
)
from janus_jax.processing import ImageSource, Message
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

_MAX_IMAGES = 7
_MENTION = re.compile(r"<image (\d+)>")
_LITERAL_ERRORS: tuple[type[Exception], ...] = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
_ID = re.compile(r"validation_(.+)_\d+")


@dataclass(frozen=True, kw_only=True)
class MmmuQuestion(Question):
    """An MMMU question.

    Attributes:
      subject: Subject, such as "Accounting".
      choices: Options by letter; empty for an open question.
      answer: The correct letter; for an open question, all accepted texts.
      answer_field: Text of the field `answer` in the data file.
    """

    subject: str
    choices: dict[str, str]
    answer: tuple[str, ...]
    answer_field: str


def read(data: Path, options: Options) -> list[MmmuQuestion]:
    """Reads the questions of all validation files in the folder and its subfolders."""
    files = sorted(path for kind in ("parquet", "jsonl", "json") for path in data.rglob(f"*validation*.{kind}"))
    if not files:
        raise JanusError(f"{data} contains no *validation*.parquet, .json or .jsonl; --list shows the expected files.")
    return [_question(entry, file.parent, options["prompt"]) for file in files for entry in _read_entries(file)]


def _read_entries(file: Path) -> Iterator[Entry]:
    if file.suffix == ".parquet":
        return read_parquet(file)
    return read_json_lines(file) if file.suffix == ".jsonl" else entries(str(file), read_json_value(file))


def _question(entry: Entry, folder: Path, prompt: str) -> MmmuQuestion:
    name = entry.text("id")
    match = _ID.fullmatch(name)
    if not match:
        raise JanusError(f"{entry.where}: id is {name!r:.80}; expected validation_SUBJECT_NUMBER.")
    choices: dict[str, str] = {}
    if entry.one_of("question_type", ("multiple-choice", "open")) == "multiple-choice":
        choices = letter_choices(_list(entry, "options"))
        if len(choices) < 2:
            raise JanusError(f"{entry.where}: options contains {len(choices)} options; expected at least two.")
    answer: tuple[str, ...]
    if choices:
        answer = (entry.one_of("answer", tuple(choices)),)
    else:
        answer = tuple(_list(entry, "answer")) if _is_list(entry.values.get("answer")) else (entry.text("answer"),)
    format_question = _official_prompt if prompt == "official" else _authors_prompt
    return MmmuQuestion(
        id=name,
        max_new_tokens=256,
        messages=format_question(entry.text("question"), choices, _images(entry, folder)),
        subject=match[1],
        choices=choices,
        answer=answer,
        answer_field=str(entry.values["answer"]),
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.strip()[:1] == "[")


def _list(entry: Entry, name: str) -> list[str]:
    """Returns the list of texts in a field. The field contains a list, or a list as Python source."""
    value = entry.get(name, "a list")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except _LITERAL_ERRORS:
            value = None
    if not isinstance(value, list):
        raise JanusError(
            f"{entry.where}: {name} is {entry.values[name]!r:.80}; expected a list or the Python literal of one."
        )
    return [str(item) for item in value]


def _images(entry: Entry, folder: Path) -> dict[int, ImageSource]:
    """Returns the images of an entry by number. An image is the path or the content of a file."""
    images: dict[int, ImageSource] = {}
    for number in range(1, _MAX_IMAGES + 1):
        name = f"image_{number}"
        value = entry.values.get(name)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            images[number] = value
        elif isinstance(value, str) and value:
            images[number] = entry.image_path(folder, value)
        elif value is not None:
            raise JanusError(f"{entry.where}: {name} is {value!r:.80}; expected the path or bytes of an image.")
    if not images:
        raise JanusError(f"{entry.where}: the field image_1 is missing; expected an image.")
    return images


def _authors_prompt(question: str, choices: dict[str, str], images: dict[int, ImageSource]) -> list[Message]:
    """Formats a question as Janus' authors do: all images come first, and the text mentions them as "<image 1>"."""
    text = multiple_choice_prompt(question, choices) if choices else f"{question}\nAnswer the question directly."
    return user_message(list(images.values()), text)


def _official_prompt(question: str, choices: dict[str, str], images: dict[int, ImageSource]) -> list[Message]:
    """Formats a question as MMMU's authors do: an image replaces its first mention. Other images come first."""
    lines = [f"({letter}) {option}" for letter, option in choices.items()]
    text = "\n".join([question, *lines, "", LETTER_ANSWER]) if choices else short_answer_prompt(question)
    mentioned: list[int] = []

    def insert_image(mention: re.Match[str]) -> str:
        number = int(mention[1])
        if number not in images or number in mentioned:
            return mention[0]
        mentioned.append(number)
        return IMAGE_PLACEHOLDER

    text = _MENTION.sub(insert_image, text)
    first = [number for number in images if number not in mentioned]
    ordered = [images[number] for number in (*first, *mentioned)]
    return [{"role": "user", "content": f"{IMAGE_PLACEHOLDER * len(first)}{text}", "images": ordered}]


def parse_answers(questions: Sequence[MmmuQuestion], answers: Answers) -> dict[str, str]:
    """Returns the chosen letters of multiple-choice answers and the unchanged open answers, by question id."""
    rng = random.Random(SEED)
    return {q.id: parse_letter(answers[q.id], q.choices, rng) if q.choices else answers[q.id] for q in questions}


def score(questions: Sequence[MmmuQuestion], answers: Answers, options: Options) -> Scores:
    """Returns accuracies in percent with two matchers of answers, in total and by subject.

    The names are `MATCHER.accuracy` and `MATCHER.SUBJECT`. Janus' authors use the matcher `vlmevalkit`, MMMU's authors
    use `official`.
    """
    parsed = parse_answers(questions, answers)
    matchers = {
        "vlmevalkit": [_matches_as_vlmevalkit(q, answers[q.id]) for q in questions],
        "official": [parsed[q.id] in q.answer if q.choices else is_correct(parsed[q.id], q.answer) for q in questions],
    }
    totals = {f"{name}.accuracy": percent(correct) for name, correct in matchers.items()}
    subjects = [q.subject for q in questions]
    return totals | {
        score_name: value
        for name, correct in matchers.items()
        for score_name, value in accuracy_by(f"{name}.{{}}", list(zip(subjects, correct, strict=True))).items()
    }


def _matches_as_vlmevalkit(question: MmmuQuestion, answer: str) -> bool:
    """Returns whether VLMEvalKit's exact matching accepts an answer.

    VLMEvalKit turns an open question into one with two options: A is the expected answer, B is "Other Answers". The
    correct letter is A; but if the expected answer is a capital letter, that letter is correct.
    """
    if question.choices:
        return parse_choice(answer, question.choices) in question.answer
    expected = question.answer_field
    correct = expected if expected in tuple(string.ascii_uppercase) else "A"
    return parse_choice(answer, {"A": expected, "B": "Other Answers"}) == correct


def write_predictions(questions: Sequence[MmmuQuestion], answers: Answers, folder: Path) -> None:
    """Writes `mmmu_val.json` for the official scorer: by question id, the chosen letter or the open answer."""
    content = json.dumps(parse_answers(questions, answers), indent=2)
    (folder / "mmmu_val.json").write_text(content, encoding="utf-8")


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU: 900 questions of 30 subjects, the validation split",
    layout="""SUBJECT/validation-*.parquet (requires pyarrow), as on the Hugging Face Hub;
or *validation*.json (a list) or *validation*.jsonl of
  id, question, options, answer, question_type, image_1 ... image_7 (paths relative to the file)""",
    source="https://huggingface.co/datasets/MMMU/MMMU",
    read=read,
    score=score,
    official_sizes=(900,),
    write_predictions=write_predictions,
    options={"prompt": Choice("authors", "official")},
    published={"vlmevalkit.accuracy": (30.5, 29.3, 36.3, 41.0)},
)
