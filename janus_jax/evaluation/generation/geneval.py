"""GenEval (arXiv 2310.11513): prompts that ask for objects with a number, color or position.

The official scorer runs outside this command. It detects objects in the images of OUT/predictions and writes a line of
JSON per image. The function `score` reads this file from OUT/predictions/results.jsonl.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Number, Options, Scores
from janus_jax.evaluation.benchmark_files import read_json_lines
from janus_jax.evaluation.generation.image_requests import (
    PREDICTIONS,
    SAMPLING_OPTIONS,
    ImageRequest,
    generated_files,
    requests_for_prompt,
)

TASKS = {
    "single_object": "single",
    "two_object": "two",
    "counting": "count",
    "colors": "colors",
    "position": "position",
    "color_attr": "attribute",
}
"""Names of the tasks' scores by the tag that the prompt file uses for the task."""

RESULTS = "results.jsonl"
_FILE = "evaluation_metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class GenEvalRequest(ImageRequest):
    """A request for an image of GenEval.

    Attributes:
      tag: Task of the prompt, a key of `TASKS`.
      metadata: Line of the prompt file, as JSON.
    """

    tag: str
    metadata: str = field(repr=False)

    @property
    def prompt_metadata(self) -> Mapping[str, Any]:
        """Line of the prompt file."""
        return json.loads(self.metadata)


def read(data: Path, options: Options) -> list[GenEvalRequest]:
    """Reads the requests for all prompts; the option `images` is their number per prompt."""
    requests = []
    for index, entry in enumerate(read_json_lines(data / _FILE)):
        tag = entry.one_of("tag", tuple(TASKS))
        prompt = entry.text("prompt")
        # The official scorer needs these fields. Without this check it would fail after all images are generated.
        for included in entry.entries("include"):
            included.text("class", "the name of an object")
        files = [f"{PREDICTIONS}/{index:05}/samples/{number:04}.png" for number in range(int(options["images"]))]
        metadata = json.dumps(dict(entry.values), ensure_ascii=False)
        requests += [
            GenEvalRequest(**vars(request), tag=tag, metadata=metadata)
            for request in requests_for_prompt(prompt, index, files, data)
        ]
    return requests


def write_predictions(requests: Sequence[GenEvalRequest], answers: Answers, folder: Path) -> None:
    """Writes the prompt's line to `00000/metadata.jsonl`, next to the images in `00000/samples/`, for each prompt."""
    generated_files(requests, answers)
    for request in requests:
        if request.image_index == 0:
            target = folder / f"{request.prompt_index:05}" / "metadata.jsonl"
            target.write_text(request.metadata, encoding="utf-8")


def score(requests: Sequence[GenEvalRequest], answers: Answers, options: Options) -> Scores:
    """Returns the fraction of correct images per task, and the mean over tasks as `overall`.

    Returns no scores if results.jsonl does not exist yet.

    Raises:
      JanusError: results.jsonl is malformed or lacks images.
    """
    file = Path(answers[requests[0].id]).parents[2] / RESULTS
    if not file.exists():
        return {}
    correct: dict[str, bool] = {}
    for entry in read_json_lines(file):
        name = "/".join(Path(entry.text("filename")).parts[-3:])
        value = entry.get("correct", "true or false")
        if not isinstance(value, bool):
            raise JanusError(f"{entry.where}: correct is {value!r:.80}; expected true or false.")
        correct[f"{PREDICTIONS}/{name}"] = value
    missing = [request.file for request in requests if request.file not in correct]
    if missing:
        raise JanusError(f"{file} lacks {missing[0]} and {len(missing) - 1} more; run the scorer on all images.")
    shares: dict[str, float] = {}
    for tag, name in TASKS.items():
        of_task = [correct[request.file] for request in requests if request.tag == tag]
        if of_task:
            shares[name] = sum(of_task) / len(of_task)
    return {"overall": sum(shares.values()) / len(shares), **shares}


BENCHMARK = Benchmark(
    name="geneval",
    title="GenEval: 553 prompts, 4 images of each; graded by an object detector, outside this command",
    layout=_FILE,
    source="https://github.com/djghosh13/geneval (prompts/evaluation_metadata.jsonl); its evaluate_images.py reads "
    f"OUT/{PREDICTIONS}; save its results there as {RESULTS} and run this command again for the scores",
    read=read,
    score=score,
    official_sizes=lambda options: (553 * int(options["images"]),),
    write_predictions=write_predictions,
    options={"images": Number(4, 1, 9999, integer=True), **SAMPLING_OPTIONS},
    published={
        "overall": (0.61, 0.63, 0.73, 0.80),
        "single": (0.97, 0.97, 0.98, 0.99),
        "two": (0.68, 0.59, 0.82, 0.89),
        "count": (0.30, 0.45, 0.51, 0.59),
        "colors": (0.84, 0.83, 0.89, 0.90),
        "position": (0.46, 0.53, 0.65, 0.79),
        "attribute": (0.42, 0.42, 0.56, 0.66),
    },
)
