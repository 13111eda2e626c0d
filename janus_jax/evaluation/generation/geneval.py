"""GenEval (arXiv 2310.11513): are the objects of the prompt there, as many, so coloured, so placed?

A detector tells, outside: the official scorer reads OUT/predictions and writes a line of json a picture. That file, put
there as results.jsonl, is what this room counts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Amount, Answers, Benchmark, Options, Scores, check_ids, published
from janus_jax.evaluation.generation.image_requests import DRAWING, PREDICTIONS, Picture, drawn_files, pictures_of
from janus_jax.evaluation.understanding.benchmark_files import json_lines

TASKS = {
    "single_object": "single",
    "two_object": "two",
    "counting": "count",
    "colors": "colours",
    "position": "position",
    "color_attr": "attribute",
}
"""The papers' name of each task, by its tag."""

RESULTS = "results.jsonl"
_FILE = "evaluation_metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class GenEvalPicture(Picture):
    """A picture, and the line of the prompts' file that it is of."""

    tag: str
    metadata: str = field(repr=False)


def read(data: Path, options: Options) -> list[GenEvalPicture]:
    """The pictures of every line."""
    pictures = []
    for index, entry in enumerate(json_lines(data / _FILE)):
        tag = entry.one_of("tag", tuple(TASKS))
        prompt = entry.text("prompt")
        # The official scorer trips over a line that lacks them, after all is drawn.
        for wanted in entry.entries("include"):
            wanted.text("class", "the name of an object")
        names = [f"{PREDICTIONS}/{index:05}/samples/{number:04}.png" for number in range(int(options["images"]))]
        metadata = json.dumps(dict(entry.values), ensure_ascii=False)
        pictures += [
            GenEvalPicture(**vars(picture), tag=tag, metadata=metadata)
            for picture in pictures_of(prompt, index, names, data, None)
        ]
    check_ids(pictures, data / _FILE)
    return pictures


def write_predictions(pictures: Sequence[GenEvalPicture], answers: Answers, folder: Path) -> None:
    """`00000/metadata.jsonl` beside `00000/samples/`, where the pictures are already, and so on."""
    drawn_files(pictures, answers)
    for picture in pictures:
        if picture.number == 0:
            target = folder / f"{picture.prompt_number:05}" / "metadata.jsonl"
            target.write_text(picture.metadata, encoding="utf-8")


def score(pictures: Sequence[GenEvalPicture], answers: Answers, options: Options) -> Scores:
    """The share of pictures that are right, of each task, and the mean of the six; none before results.jsonl is there.

    Raises:
      JanusError: results.jsonl is of other pictures.
    """
    file = Path(answers[pictures[0].id]).parents[2] / RESULTS
    if not file.exists():
        return {}
    right: dict[str, bool] = {}
    for entry in json_lines(file):
        name = "/".join(Path(entry.text("filename")).parts[-3:])
        correct = entry.get("correct", "true or false")
        if not isinstance(correct, bool):
            raise JanusError(f"{entry.where}: correct is {correct!r:.80}; true or false is expected.")
        right[f"{PREDICTIONS}/{name}"] = correct
    missing = [picture for picture in pictures if picture.file not in right]
    if missing:
        raise JanusError(f"{file} lacks {missing[0].file} and {len(missing) - 1} more; let the scorer read them all.")
    shares: dict[str, float] = {}
    for tag, name in TASKS.items():
        of_task = [right[picture.file] for picture in pictures if picture.tag == tag]
        if of_task:
            shares[name] = sum(of_task) / len(of_task)
    return {"overall": sum(shares.values()) / len(shares), **shares}


BENCHMARK = Benchmark(
    name="geneval",
    title="GenEval: 553 prompts, 4 pictures of each; a detector looks at them outside",
    layout=_FILE,
    source="https://github.com/djghosh13/geneval (prompts/evaluation_metadata.jsonl); its evaluate_images.py reads "
    f"OUT/{PREDICTIONS}, and its results, put there as {RESULTS}, are counted by the next call",
    read=read,
    score=score,
    write_predictions=write_predictions,
    options={"images": Amount(4, 1, 9999, whole=True), **DRAWING},
    published=published(
        overall=(0.61, 0.63, 0.73, 0.80),
        single=(0.97, 0.97, 0.98, 0.99),
        two=(0.68, 0.59, 0.82, 0.89),
        count=(0.30, 0.45, 0.51, 0.59),
        colours=(0.84, 0.83, 0.89, 0.90),
        position=(0.46, 0.53, 0.65, 0.79),
        attribute=(0.42, 0.42, 0.56, 0.66),
    ),
)
