"""DPG-Bench (ELLA, arXiv 2403.05135): long prompts. Another model grades the images, outside this command."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, no_scores
from janus_jax.evaluation.generation.image_requests import (
    PREDICTIONS,
    SAMPLING_OPTIONS,
    ImageRequest,
    generated_files,
    requests_for_prompt,
)
from janus_jax.files import read_text, reading
from janus_jax.image_files import save_png

_ROWS, _COLUMNS = 2, 2
_FOLDER = "prompts"


def read(data: Path, options: Options) -> list[ImageRequest]:
    """Reads four requests per prompt. The prompts are in the order of their file names."""
    with reading(data / _FOLDER):
        files = sorted(file for file in (data / _FOLDER).iterdir() if file.suffix == ".txt")
    requests = []
    for index, file in enumerate(files):
        prompt = read_text(file).strip()
        if not prompt:
            raise JanusError(f"{file} is empty; expected a prompt.")
        names = [f"images/{file.stem}_{number}.png" for number in range(_ROWS * _COLUMNS)]
        requests += requests_for_prompt(prompt, index, names, data)
    return requests


def write_predictions(requests: Sequence[ImageRequest], answers: Answers, folder: Path) -> None:
    """Writes one file `ID.png` per prompt: its four images in a grid of two by two."""
    groups: dict[str, list[Path]] = {}
    for request, file in zip(requests, generated_files(requests, answers), strict=True):
        groups.setdefault(request.group, []).append(file)
    for group in groups.values():
        target = folder / f"{group[0].stem.rpartition('_')[0]}.png"
        # A grid that is newer than its images is not written again.
        if not target.exists() or target.stat().st_mtime_ns < max(file.stat().st_mtime_ns for file in group):
            save_png(_grid(group), target, compress_level=1)


def _grid(files: Sequence[Path]) -> Image.Image:
    tiles = []
    for file in files:
        with reading(file, "remove its line from answers.jsonl to generate it again"):
            tiles.append(Image.open(file).convert("RGB"))
    width, height = tiles[0].size
    grid = Image.new("RGB", (_COLUMNS * width, _ROWS * height))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, _COLUMNS)
        grid.paste(tile, (column * width, row * height))
    return grid


BENCHMARK = Benchmark(
    name="dpg",
    title="DPG-Bench: 1,065 long prompts, 4 images of each in a grid; graded by mPLUG, outside this command",
    layout=f"{_FOLDER}/*.txt",
    source="https://github.com/TencentQQGYLab/ELLA (dpg_bench/prompts); its compute_dpg_bench.py reads "
    f"OUT/{PREDICTIONS} (--pic-num 4 --resolution SIZE, the size of one of the four images)",
    read=read,
    score=no_scores,
    official_sizes=(1_065 * _ROWS * _COLUMNS,),
    write_predictions=write_predictions,
    options=dict(SAMPLING_OPTIONS),
    published={"dpg": (79.68, 80.09, 82.63, 84.19)},
)
