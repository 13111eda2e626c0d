"""Plots the curves of a run, and shows held-out pictures with their reconstructions by the image tokenizer.

    python -m examples.emoji.figures runs/emoji

writes `figures/curves.svg` and `figures/reconstructions.png` in the folder of the run.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import janus_jax
from janus_jax.commands import cli
from janus_jax.evaluation.benchmark_files import read_json_lines
from janus_jax.extras import require
from janus_jax.generation.image_tokens import images_to_tokens, tokens_to_images
from janus_jax.models.janus import Janus
from janus_jax.processing import open_image, prepare_generation

_SHOWN = 12
"""Pictures in a row."""

_LOSSES = {"loss/understanding": "answers", "loss/generation": "image tokens"}

_PLOTS = (
    ("tokenizer/metrics.jsonl", "PSNR of held-out pictures, dB", {"eval/psnr": "image tokenizer"}),
    (
        "und_encoder/metrics.jsonl",
        "held-out pictures that find their name",
        {"eval/retrieval": "understanding encoder"},
    ),
    ("janus/stage_1/metrics.jsonl", "stage 1, loss per token", {"loss/understanding": "answers"}),
    ("janus/stage_2/metrics.jsonl", "stage 2, loss per token", _LOSSES),
    ("janus/stage_3/metrics.jsonl", "stage 3, loss per token", _LOSSES),
)
"""File of the metrics, title, and names of the metrics with their labels."""


def main(arguments: Sequence[str]) -> None:
    """Writes both figures."""
    require("The curves", "matplotlib")
    (workdir,) = map(Path, arguments)
    figures = workdir / "figures"
    figures.mkdir(exist_ok=True)
    plot_curves(workdir, figures / "curves.svg")
    reconstruct(workdir).save(figures / "reconstructions.png", optimize=True)
    print(figures)


def plot_curves(workdir: Path, file: Path) -> None:
    """Plots the metrics of all trainings by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 2.8), layout="constrained")
    for axes, (path, title, names) in zip(figure.subplots(1, len(_PLOTS)), _PLOTS, strict=True):
        lines = [json.loads(line) for line in (workdir / path).read_text().splitlines()]
        for name, label in names.items():
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), label=label)
        axes.set(xlabel="step", title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


def reconstruct(workdir: Path) -> Image.Image:
    """Returns held-out pictures, evenly spaced, with their reconstructions below them."""
    loaded = janus_jax.load(workdir / "model", "float32")
    model, params = loaded.model, loaded.params
    assert isinstance(model, Janus)
    files = [entry.text("image") for entry in read_json_lines(workdir / "data" / "held_out.jsonl")]
    files = files[:: max(1, len(files) // _SHOWN)][:_SHOWN]
    pictures = [open_image(workdir / "data" / "pictures" / file, background="white") for file in files]
    pixels = np.stack([prepare_generation(picture, loaded.config.gen_image_size) for picture in pictures])
    decoded = tokens_to_images(model, params, images_to_tokens(model, params, pixels))
    rows = [np.concatenate([*row], axis=1) for row in (pixels, np.asarray(decoded))]
    return Image.fromarray(np.concatenate(rows))


if __name__ == "__main__":
    cli.run(main, positional=["WORKDIR"])
