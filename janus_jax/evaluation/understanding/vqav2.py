"""VQA v2 (arXiv 1612.00837): open questions about photographs, each with the answers of ten annotators."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Choice, Options, Question, Scores
from janus_jax.evaluation.benchmark_files import read_json_entry
from janus_jax.evaluation.understanding.prompts import short_answer_prompt, user_message
from janus_jax.evaluation.understanding.vqa_answers import normalize, soft_accuracy

# Image folder of each split. Names of image files contain the name of the folder.
_IMAGE_FOLDERS = {"val2014": "val2014", "test-dev2015": "test2015", "test2015": "test2015"}
_ANNOTATED_SPLIT = "val2014"
_OFFICIAL_SIZES = {"val2014": 214_354, "test-dev2015": 107_394, "test2015": 447_793}


@dataclass(frozen=True, kw_only=True)
class VqaQuestion(Question):
    """A VQA question.

    Attributes:
      split: Name of the split.
      annotations: Answers of the annotators; empty for the test splits.
      kind: Type of the answer, such as "number"; "" for the test splits.
    """

    split: str
    annotations: tuple[str, ...]
    kind: str


def read(data: Path, options: Options) -> list[VqaQuestion]:
    """Reads the questions of a split, in file order."""
    split, folder = options["split"], _IMAGE_FOLDERS[options["split"]]
    annotations = _read_annotations(data / f"v2_mscoco_{split}_annotations.json") if split == _ANNOTATED_SPLIT else {}
    file = data / f"v2_OpenEnded_mscoco_{split}_questions.json"
    questions = []
    for entry in read_json_entry(file).entries("questions"):
        number, image_id = entry.id("question_id"), entry.id("image_id")
        if split == _ANNOTATED_SPLIT and number not in annotations:
            raise JanusError(f"{entry.where}: question_id {number} has no entry in v2_mscoco_{split}_annotations.json.")
        kind, answers = annotations.get(number, ("", ()))
        image = entry.image_path(data / folder, f"COCO_{folder}_{image_id:0>12}.jpg")
        messages = user_message([image], short_answer_prompt(entry.text("question")))
        questions.append(VqaQuestion(id=number, messages=messages, split=split, annotations=answers, kind=kind))
    return questions


def _read_annotations(file: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns the type of the answer and the annotators' answers by question id."""
    annotations = {}
    for entry in read_json_entry(file).entries("annotations"):
        # An answer may be an empty string, so `Entry.text` does not fit.
        answers = tuple(str(answer.get("answer", "an annotator's answer")) for answer in entry.entries("answers"))
        if not answers:
            raise JanusError(f"{entry.where}: answers is empty; expected the answers of ten annotators.")
        annotations[entry.id("question_id")] = entry.text("answer_type"), answers
    return annotations


def score(questions: Sequence[VqaQuestion], answers: Answers, options: Options) -> Scores:
    """Returns the mean soft accuracy in percent, in total and by type of the answer. Test splits have no scores."""
    if options["split"] != _ANNOTATED_SPLIT:
        return {}
    points = {q.id: 100 * soft_accuracy(normalize(answers[q.id]), q.annotations) for q in questions}
    kinds = {kind: [points[q.id] for q in questions if q.kind == kind] for kind in sorted({q.kind for q in questions})}
    by_kind = {f"val.{kind}": sum(values) / len(values) for kind, values in kinds.items()}
    return {"val.accuracy": sum(points.values()) / len(points), **by_kind}


def write_predictions(questions: Sequence[VqaQuestion], answers: Answers, folder: Path) -> None:
    """Writes `v2_OpenEnded_mscoco_SPLIT_results.json`, a list of {"question_id", "answer"} for the test server.

    Answers are normalized, because the scorer compares raw strings if all annotators agree.
    """
    content = [
        {"question_id": int(q.id) if q.id.isdigit() else q.id, "answer": normalize(answers[q.id])} for q in questions
    ]
    file = folder / f"v2_OpenEnded_mscoco_{questions[0].split}_results.json"
    file.write_text(json.dumps(content), encoding="utf-8")


BENCHMARK = Benchmark(
    name="vqav2",
    title="VQA v2: open questions; the papers' score is from the test server, for the split test-dev2015",
    layout="""split val2014: v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json,
  val2014/COCO_val2014_*.jpg
split test-dev2015 or test2015: v2_OpenEnded_mscoco_SPLIT_questions.json, test2015/COCO_test2015_*.jpg""",
    source="https://visualqa.org/download.html, https://cocodataset.org",
    read=read,
    score=score,
    official_sizes=lambda options: (_OFFICIAL_SIZES[options["split"]],),
    write_predictions=write_predictions,
    options={"split": Choice(*_IMAGE_FOLDERS)},
    published={"test_dev.accuracy": (77.3, 79.8, None, None)},
)
