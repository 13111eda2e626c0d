"""MM-Vet (arXiv 2308.02490): open questions that a language model grades, outside: this writes what it reads."""

import json
from collections.abc import Sequence
from pathlib import Path

from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, check_ids, published
from janus_jax.evaluation.understanding.benchmark_files import named_entries
from janus_jax.evaluation.understanding.prompts import about

_FILE = "mm-vet.json"
# The one benchmark for which Janus' authors set one (VLMEvalKit, pull request 541).
_SYSTEM_PROMPTS = {
    "authors": "You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be "
    "sure you get the right answer.",
    "none": "",
}


def read(data: Path, options: Options) -> list[Question]:
    """The questions of the file, in its order."""
    questions = []
    for name, entry in named_entries(data / _FILE):
        image = entry.picture(data / "images", entry.text("imagename", "the name of a picture"))
        questions.append(
            Question(
                id=name,
                messages=about([image], entry.text("question")),
                max_new_tokens=1024,
                system_prompt=_SYSTEM_PROMPTS[options["system_prompt"]],
            )
        )
    check_ids(questions, data / _FILE)
    return questions


def score(questions: Sequence[Question], answers: Answers, options: Options) -> Scores:
    """None."""
    return {}


def write_predictions(questions: Sequence[Question], answers: Answers, folder: Path) -> None:
    """`mm-vet_predictions.json`: answers by question id."""
    content = {q.id: answers[q.id] for q in questions}
    (folder / "mm-vet_predictions.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet: 218 open questions; a language model grades them outside",
    layout=f"""{_FILE}
images/*""",
    source="https://github.com/yuweihao/MM-Vet; its grader reads predictions/mm-vet_predictions.json",
    read=read,
    score=score,
    write_predictions=write_predictions,
    options={"system_prompt": tuple(_SYSTEM_PROMPTS)},
    published=published(graded=(34.3, 30.9, 39.8, 50.0)),
)
