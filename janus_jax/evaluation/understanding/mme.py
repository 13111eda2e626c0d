"""MME (arXiv 2306.13394): pairs of yes/no questions about an image, in ten perception and four cognition tasks.

Each pair has one question with the answer yes and one with the answer no.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, percent
from janus_jax.evaluation.understanding.prompts import short_answer_prompt, user_message
from janus_jax.files import read_text, reading

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_SUFFIXES = (".jpg", ".png", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class MmeQuestion(Question):
    """An MME question.

    Attributes:
      task: Name of the task.
      image: Name of the image file.
      text: Text of the question.
      label: The correct answer, "Yes" or "No".
    """

    task: str
    image: str
    text: str
    label: str


def read(data: Path, options: Options) -> list[MmeQuestion]:
    """Reads the questions of all tasks; the two questions about an image are adjacent."""
    return [question for task in (*PERCEPTION, *COGNITION) for question in _read_task(data / task, task)]


def _read_task(folder: Path, task: str) -> Iterator[MmeQuestion]:
    if not folder.is_dir():
        raise JanusError(f"{folder}, the folder of MME's task {task}, is missing; --list shows the expected files.")
    texts, images = folder / "questions_answers_YN", folder / "images"
    texts, images = (subfolder if subfolder.is_dir() else folder for subfolder in (texts, images))
    with reading(folder):
        files = sorted(texts.glob("*.txt"))
        images_by_stem = {path.stem: path for path in images.iterdir() if path.suffix.lower() in _SUFFIXES}
    if not files:
        raise JanusError(f"{texts} contains no questions; expected files NAME.txt of two lines QUESTION<tab>Yes or No.")
    for file in files:
        lines = [line for line in read_text(file).split("\n") if line.strip()]
        if len(lines) != 2:
            raise JanusError(f"{file} contains {len(lines)} questions; expected two.")
        if file.stem not in images_by_stem:
            raise JanusError(f"{images} contains no image {file.stem} ({', '.join(_SUFFIXES)}) for {file}.")
        image = images_by_stem[file.stem]
        for number, line in enumerate(lines, 1):
            text, _, label = line.partition("\t")
            if label.strip() not in ("Yes", "No"):
                raise JanusError(
                    f"{file}, line {number}: the answer is {label.strip()!r:.80}; expected QUESTION<tab>Yes or No."
                )
            yield MmeQuestion(
                id=f"{task}/{file.stem}/{number}",
                group=f"{task}/{file.stem}",
                messages=user_message([image], short_answer_prompt(text)),
                task=task,
                image=image.name,
                text=text,
                label=label.strip(),
            )


def parse_answer(answer: str) -> str:
    """Returns "yes", "no" or "other". Like the official scorer, looks only at the first four characters."""
    start = _one_line(answer).lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def _one_line(answer: str) -> str:
    """Returns the answer in one line for the prediction files: each run of white space becomes one space."""
    return " ".join(answer.split())


def score(questions: Sequence[MmeQuestion], answers: Answers, options: Options) -> Scores:
    """Returns the points of each task, and their sums for perception, cognition and both.

    A task has at most 200 points: the percentage of correct answers plus the percentage of images with two correct
    answers. A task without questions has no points, and a sum that lacks a task is omitted.
    """
    correct = {q.id: parse_answer(answers[q.id]) == q.label.lower() for q in questions}
    points: dict[str, float] = {}
    details: dict[str, float] = {}
    for task in (*PERCEPTION, *COGNITION):
        of_task = [q for q in questions if q.task == task]
        if not of_task:
            continue
        pairs: dict[str, bool] = {}
        for q in of_task:
            pairs[q.group] = pairs.get(q.group, True) and correct[q.id]
        accuracy, plus = percent([correct[q.id] for q in of_task]), percent(list(pairs.values()))
        points[task] = accuracy + plus
        details |= {f"{task}.score": accuracy + plus, f"{task}.accuracy": accuracy, f"{task}.accuracy_plus": plus}
    groups = {"perception": PERCEPTION, "cognition": COGNITION, "total": (*PERCEPTION, *COGNITION)}
    sums = {name: sum(points[task] for task in tasks) for name, tasks in groups.items() if points.keys() >= set(tasks)}
    return {**sums, **details}


def write_predictions(questions: Sequence[MmeQuestion], answers: Answers, folder: Path) -> None:
    """Writes one file `TASK.txt` per task with questions. Its columns are image, question, label and answer."""
    for task in dict.fromkeys(q.task for q in questions):
        with (folder / f"{task}.txt").open("w", encoding="utf-8") as file:
            for q in questions:
                if q.task == task:
                    file.write(f"{q.image}\t{q.text}\t{q.label}\t{_one_line(answers[q.id])}\n")


BENCHMARK = Benchmark(
    name="mme",
    title="MME: yes/no questions, ten perception tasks (2,000 points) and four cognition tasks (800)",
    layout=f"""TASK/NAME.txt and TASK/NAME.jpg or .png; or, as some tasks are published,
TASK/questions_answers_YN/NAME.txt and TASK/images/NAME.jpg or .png
for each TASK of {", ".join(PERCEPTION[:5])},
  {", ".join(PERCEPTION[5:])},
  {", ".join(COGNITION)}""",
    source="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
    read=read,
    score=score,
    official_sizes=(2_374,),
    write_predictions=write_predictions,
    published={"perception": (1338.0, 1333.1, 1444.0, 1567.1)},
)
