"""MM-Vet (arXiv 2308.02490): open questions. A language model grades the predictions file, outside this command."""

import json
from collections.abc import Sequence
from pathlib import Path

from janus_jax.evaluation.benchmark import Answers, Benchmark, Choice, Options, Question, no_scores
from janus_jax.evaluation.benchmark_files import read_named_entries
from janus_jax.evaluation.understanding.prompts import user_message

_FILE = "mm-vet.json"
# MM-Vet is the only benchmark for which Janus' authors use a system prompt (VLMEvalKit, pull request 541).
_SYSTEM_PROMPTS = {
    "authors": "You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be "
    "sure you get the right answer.",
    "none": "",
}


def read(data: Path, options: Options) -> list[Question]:
    """Reads the questions in file order."""
    system_prompt = _SYSTEM_PROMPTS[options["system_prompt"]]
    questions = []
    for name, entry in read_named_entries(data / _FILE):
        image = entry.image_path(data / "images", entry.text("imagename", "the name of an image"))
        messages = user_message([image], entry.text("question"))
        questions.append(Question(id=name, messages=messages, max_new_tokens=1024, system_prompt=system_prompt))
    return questions


def write_predictions(questions: Sequence[Question], answers: Answers, folder: Path) -> None:
    """Writes `mm-vet_predictions.json`: the answers by question id."""
    content = {q.id: answers[q.id] for q in questions}
    (folder / "mm-vet_predictions.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet: 218 open questions; graded by a language model, outside this command",
    layout=f"{_FILE}\nimages/*",
    source="https://github.com/yuweihao/MM-Vet; its grader reads predictions/mm-vet_predictions.json",
    read=read,
    score=no_scores,
    official_sizes=(218,),
    write_predictions=write_predictions,
    options={"system_prompt": Choice(*_SYSTEM_PROMPTS)},
    published={"graded": (34.3, 30.9, 39.8, 50.0)},
)
