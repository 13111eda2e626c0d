"""GEdit-Bench (Step1X-Edit, arXiv 2504.17761): instructions of users in English and Chinese.

GPT-4.1 or Qwen2.5-VL grades the results with VIEScore, outside this command.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Choice, Options, no_scores
from janus_jax.evaluation.benchmark_files import Entry, read_parquet
from janus_jax.evaluation.generation.edit_requests import EDIT_OPTIONS, EditRequest
from janus_jax.evaluation.generation.image_requests import generated_files
from janus_jax.image_files import save_png
from janus_jax.processing import open_image

TASKS = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
"""Names of the folders that the official scorer reads."""

_COLUMNS = ("key", "task_type", "instruction", "instruction_language", "input_image")
_LANGUAGES = ("en", "cn")


def read(data: Path, options: Options) -> list[EditRequest]:
    """Reads the instructions of all Parquet files in the folder and its subfolders, in the selected languages."""
    files = sorted(data.rglob("*.parquet"))
    if not files:
        raise JanusError(f"{data} contains no *.parquet; --list shows the expected files.")
    requests = []
    number = 0
    for file in files:
        for entry in read_parquet(file, _COLUMNS):
            language = entry.one_of("instruction_language", _LANGUAGES)
            if options["language"] in ("all", language):
                requests.append(_request(entry, language, number, data))
            number += 1
    return requests


def _request(entry: Entry, language: str, number: int, data: Path) -> EditRequest:
    key, task = entry.id("key"), entry.one_of("task_type", TASKS)
    if Path(key).name != key:
        raise JanusError(f"{entry.where}: key is {key!r:.80}; expected a file name.")
    image = entry.get("input_image", "an image")
    source = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(source, bytes):
        raise JanusError(f"{entry.where}: input_image contains no bytes; download the file again.")
    name = f"{task}/{language}/{key}"
    return EditRequest(
        id=name,
        group=name,
        prompt=entry.text("instruction"),
        prompt_index=number,
        image_index=0,
        file=f"images/{name}.png",
        data=data,
        source=source,
        source_name=name,
    )


def write_predictions(requests: Sequence[EditRequest], answers: Answers, folder: Path) -> None:
    """Writes `fullset/TASK/LANGUAGE/KEY.png`, and the source image as `KEY_SRCIMG.png`, for each request."""
    for request, file in zip(requests, generated_files(requests, answers), strict=True):
        target = folder / "fullset" / f"{request.id}.png"
        source = target.with_name(f"{target.stem}_SRCIMG.png")
        if not source.exists():
            save_png(open_image(request.source), source, compress_level=1)
        shutil.copyfile(file, target)


BENCHMARK = Benchmark(
    name="gedit",
    title="GEdit-Bench: 1,212 edits in English and Chinese; graded by GPT-4.1 or Qwen2.5-VL, outside this command",
    layout="*.parquet",
    source="https://huggingface.co/datasets/stepfun-ai/GEdit-Bench; the scorer test_gedit_score.py of "
    "https://github.com/stepfun-ai/Step1X-Edit reads OUT as --save_path with --model_name predictions",
    read=read,
    score=no_scores,
    official_sizes=lambda options: (1_212,) if options["language"] == "all" else (606,),
    write_predictions=write_predictions,
    options={"language": Choice("all", *_LANGUAGES), **EDIT_OPTIONS},
)
