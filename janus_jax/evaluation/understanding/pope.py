"""POPE (arXiv 2305.10355): is this object in the picture? Half of the objects asked for are not there."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, check_ids, published
from janus_jax.evaluation.understanding.benchmark_files import json_lines, percent
from janus_jax.evaluation.understanding.prompts import about, short_question

SPLITS = ("random", "popular", "adversarial")
_FIGURES = ("f1", "accuracy", "precision", "recall", "yes")


@dataclass(frozen=True, kw_only=True)
class PopeQuestion(Question):
    """A question and whether the object is there."""

    split: str
    number: str
    label: bool


def read(data: Path, options: Options) -> list[PopeQuestion]:
    """The questions of the three splits."""
    questions = [question for split in SPLITS for question in _read(data, split)]
    check_ids(questions, data)
    return questions


def _read(data: Path, split: str) -> list[PopeQuestion]:
    questions = []
    for entry in json_lines(data / f"coco_pope_{split}.json"):
        number = entry.id("question_id")
        image = entry.picture(data / "val2014", entry.text("image", "the name of a picture"))
        # Some copies of the data carry what the authors left out.
        text = entry.text("text").replace(" Please answer yes or no.", "")
        questions.append(
            PopeQuestion(
                id=f"{split}/{number}",
                messages=about([image], short_question(text)),
                split=split,
                number=number,
                label=entry.one_of("label", ("yes", "no")) == "yes",
            )
        )
    return questions


def says_yes(answer: str) -> bool:
    """What the official scorer reads: no where the first sentence has the word no or not, and else yes."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def score(questions: Sequence[PopeQuestion], answers: Answers, options: Options) -> Scores:
    """F1, accuracy, precision and recall (of "yes") and the share of "yes", in percent: of each split, and means."""
    scores: dict[str, float] = {}
    for split in SPLITS:
        pairs = [(says_yes(answers[q.id]), q.label) for q in questions if q.split == split]
        scores |= {f"{split}.{name}": value for name, value in zip(_FIGURES, _figures(pairs), strict=True)}
    means = {f"mean.{name}": sum(scores[f"{split}.{name}"] for split in SPLITS) / len(SPLITS) for name in _FIGURES}
    return scores | means


def _figures(pairs: Sequence[tuple[bool, bool]]) -> tuple[float, float, float, float, float]:
    both = sum(said and there for said, there in pairs)
    said, there = sum(said for said, _ in pairs), sum(there for _, there in pairs)
    precision, recall = 100 * both / max(said, 1), 100 * both / max(there, 1)
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return f1, percent([said == there for said, there in pairs]), precision, recall, percent([s for s, _ in pairs])


def write_predictions(questions: Sequence[PopeQuestion], answers: Answers, folder: Path) -> None:
    """`coco_pope_SPLIT.jsonl`: a line {"question_id", "text"} a question."""
    for split in SPLITS:
        with (folder / f"coco_pope_{split}.jsonl").open("w", encoding="utf-8") as file:
            for q in questions:
                if q.split == split:
                    number = int(q.number) if q.number.isdigit() else q.number
                    file.write(json.dumps({"question_id": number, "text": answers[q.id]}) + "\n")


BENCHMARK = Benchmark(
    name="pope",
    title="POPE: whether an object is in the picture, three splits of 3,000 questions",
    layout="""coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json
val2014/COCO_val2014_*.jpg""",
    source="https://github.com/AoiDragon/POPE (output/coco), https://cocodataset.org (val2014)",
    read=read,
    score=score,
    write_predictions=write_predictions,
    # The authors' 87 is of the random split; which of its figures, they do not say. Their own rerun shows F1.
    published=published(random__f1=(87.0, 88.0, 86.2, 87.4)),
)
