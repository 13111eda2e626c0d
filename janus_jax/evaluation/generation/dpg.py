"""DPG-Bench (ELLA, arXiv 2403.05135): is all of a long prompt in the picture? A language model answers that outside."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Scores, check_ids, published
from janus_jax.evaluation.generation.generate_images import save
from janus_jax.evaluation.generation.image_requests import DRAWING, PREDICTIONS, Picture, drawn_files, pictures_of
from janus_jax.files import read_text, reading

_ROWS, _COLUMNS = 2, 2
_FOLDER = "prompts"


def read(data: Path, options: Options) -> list[Picture]:
    """Four pictures of every prompt, in the order of the files' names."""
    with reading(data / _FOLDER):
        files = sorted(file for file in (data / _FOLDER).iterdir() if file.suffix == ".txt")
    pictures = []
    for index, file in enumerate(files):
        prompt = read_text(file).strip()
        if not prompt:
            raise JanusError(f"{file} is empty; a prompt is expected.")
        names = [f"pictures/{file.stem}_{number}.png" for number in range(_ROWS * _COLUMNS)]
        pictures += pictures_of(prompt, index, names, data, None)
    check_ids(pictures, data / _FOLDER)
    return pictures


def write_predictions(pictures: Sequence[Picture], answers: Answers, folder: Path) -> None:
    """`<id>.png`: the four pictures of a prompt as one, two by two."""
    files = drawn_files(pictures, answers)
    groups: dict[str, list[Path]] = {}
    for picture, file in zip(pictures, files, strict=True):
        groups.setdefault(picture.group, []).append(file)
    for group in groups.values():
        target = folder / f"{group[0].stem.rpartition('_')[0]}.png"
        # Another call finds most of them there.
        if not target.exists() or target.stat().st_mtime_ns < max(file.stat().st_mtime_ns for file in group):
            save(_grid(group), target, None)


def _grid(files: Sequence[Path]) -> Image.Image:
    tiles = [_open(file) for file in files]
    width, height = tiles[0].size
    grid = Image.new("RGB", (_COLUMNS * width, _ROWS * height))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, _COLUMNS)
        grid.paste(tile, (column * width, row * height))
    return grid


def _open(file: Path) -> Image.Image:
    with reading(file, "remove its line from answers.jsonl, and it is drawn again"):
        return Image.open(file).convert("RGB")


def score(pictures: Sequence[Picture], answers: Answers, options: Options) -> Scores:
    """None."""
    return {}


BENCHMARK = Benchmark(
    name="dpg",
    title="DPG-Bench: 1,065 long prompts, 4 pictures of each in a grid; mPLUG looks at them outside",
    layout=f"{_FOLDER}/*.txt",
    source="https://github.com/TencentQQGYLab/ELLA (dpg_bench/prompts); its compute_dpg_bench.py reads "
    f"OUT/{PREDICTIONS} (--resolution: the side of one picture of the four)",
    read=read,
    score=score,
    write_predictions=write_predictions,
    options=dict(DRAWING),
    published=published(dpg=(79.68, 80.09, 82.63, 84.19)),
)
