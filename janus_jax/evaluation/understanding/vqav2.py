"""VQA v2 (arXiv 1612.00837): open questions about photographs, each answered by ten people."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, check_ids, published
from janus_jax.evaluation.understanding.benchmark_files import json_object
from janus_jax.evaluation.understanding.prompts import about, short_question
from janus_jax.evaluation.understanding.vqa_answers import normalised, soft_accuracy

# By split: the folder of its pictures, which also is in their names.
_PICTURES = {"val2014": "val2014", "test-dev2015": "test2015", "test2015": "test2015"}
_WITH_ANSWERS = "val2014"


@dataclass(frozen=True, kw_only=True)
class VqaQuestion(Question):
    """A question, what people answered (none where that is secret), and the kind of answer."""

    split: str
    people: tuple[str, ...]
    kind: str


def read(data: Path, options: Options) -> list[VqaQuestion]:
    """The questions of the split, in the order of the file."""
    split, folder = options["split"], _PICTURES[options["split"]]
    people = _people(data / f"v2_mscoco_{split}_annotations.json") if split == _WITH_ANSWERS else {}
    file = data / f"v2_OpenEnded_mscoco_{split}_questions.json"
    questions = []
    for entry in json_object(file).entries("questions"):
        number, image = entry.id("question_id"), entry.id("image_id")
        if split == _WITH_ANSWERS and number not in people:
            raise JanusError(f"{entry.where}: question_id {number} has no entry in v2_mscoco_{split}_annotations.json.")
        kind, answers = people.get(number, ("", ()))
        picture = entry.picture(data / folder, f"COCO_{folder}_{image:0>12}.jpg")
        questions.append(
            VqaQuestion(
                id=number,
                messages=about([picture], short_question(entry.text("question"))),
                split=split,
                people=answers,
                kind=kind,
            )
        )
    check_ids(questions, file)
    return questions


def _people(file: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    people = {}
    for entry in json_object(file).entries("annotations"):
        # An answer may be empty once it has lost what is no text; it must be there.
        answers = tuple(str(answer.get("answer", "what a person said")) for answer in entry.entries("answers"))
        if not answers:
            raise JanusError(f"{entry.where}: answers is empty; what ten people said is expected.")
        people[entry.id("question_id")] = entry.text("answer_type"), answers
    return people


def score(questions: Sequence[VqaQuestion], answers: Answers, options: Options) -> Scores:
    """The mean soft accuracy of what is submitted, in percent; also by kind of answer. None without answers."""
    if options["split"] != _WITH_ANSWERS:
        return {}
    points = {q.id: 100 * soft_accuracy(normalised(answers[q.id]), q.people) for q in questions}
    kinds = {kind: [points[q.id] for q in questions if q.kind == kind] for kind in sorted({q.kind for q in questions})}
    by_kind = {f"val.{kind}": sum(values) / len(values) for kind, values in kinds.items()}
    return {"val.accuracy": sum(points.values()) / len(points), **by_kind}


def write_predictions(questions: Sequence[VqaQuestion], answers: Answers, folder: Path) -> None:
    """`v2_OpenEnded_mscoco_SPLIT_results.json`: a list of {"question_id", "answer"}, as the test server takes it.

    Answers are normalised: where all people say the same, the scorer compares them letter by letter.
    """
    content = [
        {"question_id": int(q.id) if q.id.isdigit() else q.id, "answer": normalised(answers[q.id])} for q in questions
    ]
    file = folder / f"v2_OpenEnded_mscoco_{questions[0].split}_results.json"
    file.write_text(json.dumps(content), encoding="utf-8")


BENCHMARK = Benchmark(
    name="vqav2",
    title="VQA v2: open questions; the papers' figure is the test server's, of split test-dev2015",
    layout="""split val2014: v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json,
  val2014/COCO_val2014_*.jpg
split test-dev2015 or test2015: v2_OpenEnded_mscoco_SPLIT_questions.json, test2015/COCO_test2015_*.jpg""",
    source="https://visualqa.org/download.html, https://cocodataset.org",
    read=read,
    score=score,
    write_predictions=write_predictions,
    options={"split": tuple(_PICTURES)},
    published=published(test_dev__accuracy=(77.3, 79.8, None, None)),
)
