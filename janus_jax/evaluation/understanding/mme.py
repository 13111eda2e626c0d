"""MME (arXiv 2306.13394): two yes/no questions about a picture, one answered by yes and one by no; ten tasks of
perception and four of cognition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, check_ids, published
from janus_jax.evaluation.understanding.benchmark_files import percent
from janus_jax.evaluation.understanding.prompts import about, short_question
from janus_jax.files import read_text, reading

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PICTURES = (".jpg", ".png", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class MmeQuestion(Question):
    """A question of a task, whether yes is right, and the name of its picture."""

    task: str
    picture: str
    text: str
    label: str


def read(data: Path, options: Options) -> list[MmeQuestion]:
    """The questions of all tasks, those about a picture next to each other."""
    questions = [question for task in (*PERCEPTION, *COGNITION) for question in _read(data / task, task)]
    check_ids(questions, data)
    return questions


def _read(folder: Path, task: str) -> Iterator[MmeQuestion]:
    if not folder.is_dir():
        raise JanusError(
            f"{folder}, the folder of MME's task {task}, is missing; look at the layout that --list shows."
        )
    texts, pictures = folder / "questions_answers_YN", folder / "images"
    texts, pictures = (part if part.is_dir() else folder for part in (texts, pictures))
    with reading(folder):
        files = sorted(texts.glob("*.txt"))
        there = {path.stem: path for path in pictures.iterdir() if path.suffix.lower() in _PICTURES}
    if not files:
        raise JanusError(
            f"{texts} holds no questions; files NAME.txt of two lines QUESTION<tab>Yes or No are expected."
        )
    for file in files:
        lines = [line for line in read_text(file).splitlines() if line.strip()]
        if len(lines) != 2:
            raise JanusError(f"{file} holds {len(lines)} questions; the two about a picture are expected.")
        if file.stem not in there:
            raise JanusError(
                f"{pictures} holds no picture {file.stem} ({', '.join(_PICTURES)}), which {file} is about."
            )
        picture = there[file.stem]
        for number, line in enumerate(lines, 1):
            text, _, label = line.partition("\t")
            if label.strip() not in ("Yes", "No"):
                raise JanusError(
                    f"{file}, line {number}: the answer is {label.strip()!r:.80}; QUESTION<tab>Yes or No is expected."
                )
            yield MmeQuestion(
                id=f"{task}/{file.stem}/{number}",
                group=f"{task}/{file.stem}",
                messages=about([picture], short_question(text)),
                task=task,
                picture=picture.name,
                text=text,
                label=label.strip(),
            )


def said(answer: str) -> str:
    """What the official scorer reads from the first four letters: yes, no or other."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(questions: Sequence[MmeQuestion], answers: Answers, options: Options) -> Scores:
    """Points, 200 a task: the share of right questions and that of pictures with both right, in percent, added up."""
    right = {q.id: said(answers[q.id]) == q.label.lower() for q in questions}
    tasks: dict[str, float] = {}
    details: dict[str, float] = {}
    for task in (*PERCEPTION, *COGNITION):
        own = [q for q in questions if q.task == task]
        pictures: dict[str, bool] = {}
        for q in own:
            pictures[q.group] = pictures.get(q.group, True) and right[q.id]
        accuracy, plus = percent([right[q.id] for q in own]), percent(list(pictures.values()))
        tasks[task] = accuracy + plus
        details |= {f"{task}.score": accuracy + plus, f"{task}.accuracy": accuracy, f"{task}.accuracy_plus": plus}
    perception, cognition = (sum(tasks[task] for task in kind) for kind in (PERCEPTION, COGNITION))
    return {"perception": perception, "cognition": cognition, "total": perception + cognition, **details}


def write_predictions(questions: Sequence[MmeQuestion], answers: Answers, folder: Path) -> None:
    """`TASK.txt`: a line picture, question, right answer and answer, with tabs between, a question."""
    for task in (*PERCEPTION, *COGNITION):
        with (folder / f"{task}.txt").open("w", encoding="utf-8") as file:
            for q in questions:
                if q.task == task:
                    answer = " ".join(answers[q.id].split())
                    file.write(f"{q.picture}\t{q.text}\t{q.label}\t{answer}\n")


BENCHMARK = Benchmark(
    name="mme",
    title="MME: yes or no, ten tasks of perception (2,000 points) and four of cognition (800)",
    layout=f"""TASK/NAME.txt and TASK/NAME.jpg or .png; or, as some tasks come,
TASK/questions_answers_YN/NAME.txt and TASK/images/NAME.jpg or .png
for each TASK of {", ".join((*PERCEPTION[:5],))},
  {", ".join((*PERCEPTION[5:],))},
  {", ".join(COGNITION)}""",
    source="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
    read=read,
    score=score,
    write_predictions=write_predictions,
    published=published(perception=(1338.0, 1333.1, 1444.0, 1567.1)),
)
