"""POPE (arXiv 2305.10355): yes/no questions on whether an object is in the image. Half of the objects are absent."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, percent
from janus_jax.evaluation.benchmark_files import Entry, read_json_lines, write_json_lines
from janus_jax.evaluation.understanding.prompts import short_answer_prompt, user_message

SPLITS = ("random", "popular", "adversarial")
_SCORES = ("f1", "accuracy", "precision", "recall", "yes")


@dataclass(frozen=True, kw_only=True)
class PopeQuestion(Question):
    """A POPE question.

    Attributes:
      split: Name of the split.
      number: Id in the split's file.
      present: Whether the object is in the image.
    """

    split: str
    number: str
    present: bool


def read(data: Path, options: Options) -> list[PopeQuestion]:
    """Reads the questions of all splits whose files exist."""
    files = {split: data / f"coco_pope_{split}.json" for split in SPLITS}
    # Without any file, the first one is reported as missing.
    found = {split: file for split, file in files.items() if file.exists()} or files
    return [_question(entry, split, data) for split, file in found.items() for entry in read_json_lines(file)]


def _question(entry: Entry, split: str, data: Path) -> PopeQuestion:
    number = entry.id("question_id")
    image = entry.image_path(data / "val2014", entry.text("image", "the name of an image"))
    # Some copies of the data contain this sentence, which Janus' authors did not use.
    text = entry.text("text").replace(" Please answer yes or no.", "")
    return PopeQuestion(
        id=f"{split}/{number}",
        messages=user_message([image], short_answer_prompt(text)),
        split=split,
        number=number,
        present=entry.one_of("label", ("yes", "no")) == "yes",
    )


def parse_yes(answer: str) -> bool:
    """Returns False if the first sentence has the word "No", "no" or "not", else True, as the official scorer does."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def score(questions: Sequence[PopeQuestion], answers: Answers, options: Options) -> Scores:
    """Returns F1, accuracy, precision and recall of the answer "yes", and its frequency, in percent.

    The names are `SPLIT.SCORE`, and `mean.SCORE` for the means over the splits. A split without questions has no
    scores, and then there are no means.
    """
    scores: dict[str, float] = {}
    splits = [split for split in SPLITS if any(q.split == split for q in questions)]
    for split in splits:
        pairs = [(parse_yes(answers[q.id]), q.present) for q in questions if q.split == split]
        scores |= {f"{split}.{name}": value for name, value in zip(_SCORES, _score_split(pairs), strict=True)}
    if len(splits) == len(SPLITS):
        scores |= {f"mean.{name}": sum(scores[f"{split}.{name}"] for split in SPLITS) / len(SPLITS) for name in _SCORES}
    return scores


def _score_split(pairs: Sequence[tuple[bool, bool]]) -> tuple[float, float, float, float, float]:
    true_positives = sum(yes and present for yes, present in pairs)
    predicted, positives = sum(yes for yes, _ in pairs), sum(present for _, present in pairs)
    precision, recall = 100 * true_positives / max(predicted, 1), 100 * true_positives / max(positives, 1)
    f1 = 2 * precision * recall / (precision + recall) if true_positives else 0.0
    accuracy = percent([yes == present for yes, present in pairs])
    return f1, accuracy, precision, recall, percent([yes for yes, _ in pairs])


def write_predictions(questions: Sequence[PopeQuestion], answers: Answers, folder: Path) -> None:
    """Writes the answers for the official scorer and for LLaVA's script `eval_pope.py`.

    The official scorer reads one file `coco_pope_SPLIT.jsonl` per split: {"question_id", "answer", "text"} per line.
    LLaVA's script reads `llava_pope.jsonl` both as questions and as answers: {"question_id", "category", "text"}, with
    ids that are unique over all splits.
    """
    for split in SPLITS:
        lines = [
            {
                "question_id": int(q.number) if q.number.isdigit() else q.number,
                "answer": answers[q.id],
                "text": answers[q.id],
            }
            for q in questions
            if q.split == split
        ]
        if lines:
            write_json_lines(folder / f"coco_pope_{split}.jsonl", lines)
    combined = [{"question_id": q.id, "category": q.split, "text": answers[q.id]} for q in questions]
    write_json_lines(folder / "llava_pope.jsonl", combined)


BENCHMARK = Benchmark(
    name="pope",
    title="POPE: whether an object is in the image, three splits of 3,000 questions",
    layout="""coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json, at least one of them
val2014/COCO_val2014_*.jpg""",
    source="https://github.com/AoiDragon/POPE (output/coco), https://cocodataset.org (val2014)",
    read=read,
    score=score,
    official_sizes=(9_000, 8_910),  # In the first release, the random split had 2,910 questions.
    write_predictions=write_predictions,
    # The papers' score is for the random split. They do not state which score it is; the authors' rerun shows F1.
    published={"random.f1": (87.0, 88.0, 86.2, 87.4)},
)
