"""Benchmark: pictures generated from the names of emoji, of training and held-out ones.

    janus-evaluate --benchmark examples.emoji.generation_benchmark:emoji_generation --data runs/emoji ...

The trained encoder judges whether a picture shows what its prompt names: it ranks the prompts of the same split by
their similarity to the picture. Distances to the pictures of the package tell copies from new pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from janus_jax.evaluation.benchmark import Answers, Benchmark, Number, Options, Scores
from janus_jax.evaluation.benchmark_files import read_json_lines
from janus_jax.evaluation.generation.image_requests import (
    PREDICTIONS,
    ImageRequest,
    generated_files,
    requests_for_prompt,
)
from janus_jax.evaluation.registry import register_benchmark
from janus_jax.processing import open_image

_SHOWN = 12
"""Prompts of each split on the contact sheet."""


@dataclass(frozen=True, kw_only=True)
class EmojiRequest(ImageRequest):
    """A request for the picture of a name, with the split and the file of the real picture."""

    split: str
    picture: str


def read(data: Path, options: Options) -> list[EmojiRequest]:
    """Returns one request per line of `prompts.jsonl`."""
    return [
        EmojiRequest(**vars(request), split=entry.text("split"), picture=entry.text("image"))
        for number, entry in enumerate(read_json_lines(data / "data" / "prompts.jsonl"))
        for request in requests_for_prompt(entry.text("prompt"), number, [f"{PREDICTIONS}/{number:05}.png"], data)
    ]


def score(requests: Sequence[EmojiRequest], answers: Answers, options: Options) -> Scores:
    """Returns these scores of each split, in which N is its number of prompts.

    first of N: Fraction of pictures to which their own prompt is the most similar of all prompts; followed by that of
      the real pictures, and chance.
    nearest: Fraction of pictures whose nearest picture of all in the package is the one that the prompt names.
    distance: Mean distance to the nearest training picture (root mean square, pixels from 0 to 1), followed by that of
      the real pictures to the nearest other training picture.
    """
    # Imported here because janus-evaluate lists benchmarks without jax.
    from janus_jax.training.siglip import CaptionMatcher

    data = requests[0].data
    matcher = CaptionMatcher.from_directory(data / "und_encoder" / "two_towers")
    size = Image.open(generated_files(requests, answers)[0]).size
    names = sorted(file.name for file in (data / "data" / "pictures").iterdir())
    training = {entry.text("image") for entry in read_json_lines(data / "data" / "train.jsonl")}
    is_training = np.array([name in training for name in names])
    pictures = np.stack([_pixels(_open_real(data, name), size) for name in names])
    scores: dict[str, float] = {}
    for split in dict.fromkeys(request.split for request in requests):
        asked = [request for request in requests if request.split == split]
        generated, real = _open(asked, answers)
        prompts = [request.prompt for request in asked]
        named = np.array([names.index(request.picture) for request in asked])
        distances = _distances(np.stack([_pixels(image, size) for image in generated]), pictures)
        others = _distances(pictures[named], pictures)
        others[np.arange(len(named)), named] = np.inf
        first = f"{split}: first of {len(asked)}"
        scores |= {
            first: _first(matcher.similarity(generated, prompts)),
            f"{first}, real pictures": _first(matcher.similarity(real, prompts)),
            f"{first}, chance": 1 / len(asked),
            f"{split}: nearest": float(np.mean(distances.argmin(axis=1) == named)),
            f"{split}: distance": float(distances[:, is_training].min(axis=1).mean()),
            f"{split}: distance, real pictures": float(others[:, is_training].min(axis=1).mean()),
        }
    return scores


def write_predictions(requests: Sequence[EmojiRequest], answers: Answers, folder: Path) -> None:
    """Writes `sheet.png`: some generated pictures of each split, with the real ones below them."""
    rows = []
    for split in dict.fromkeys(request.split for request in requests):
        rows += list(_open([request for request in requests if request.split == split][:_SHOWN], answers))
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (_SHOWN * (width + 4), len(rows) * (height + 4)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image.resize((width, height)), (x * (width + 4), y * (height + 4)))
    sheet.save(folder / "sheet.png")


def _open(requests: Sequence[EmojiRequest], answers: Answers) -> tuple[list[Image.Image], list[Image.Image]]:
    """Returns the generated and the real pictures."""
    real: list[Image.Image] = [_open_real(one.data, one.picture) for one in requests]
    return [Image.open(file) for file in generated_files(requests, answers)], real


def _open_real(data: Path, name: str) -> Image.Image:
    return open_image(data / "data" / "pictures" / name, background="white")


def _first(similarity: Float[np.ndarray, "N N"]) -> float:
    return float(np.mean(similarity.argmax(axis=1) == np.arange(len(similarity))))


def _pixels(image: Image.Image, size: tuple[int, int]) -> Float[np.ndarray, " P"]:
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32).reshape(-1) / 255


def _distances(a: Float[np.ndarray, "N P"], b: Float[np.ndarray, "M P"]) -> Float[np.ndarray, "N M"]:
    """Returns the root mean square differences of all pairs."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0) / a.shape[1])


BENCHMARK = register_benchmark(
    Benchmark(
        name="emoji_generation",
        title="Pictures generated from the names of emoji",
        layout="data/prompts.jsonl\ndata/train.jsonl\ndata/pictures/*.png\nund_encoder/two_towers/",
        source="python -m examples.emoji.train",
        read=read,
        score=score,
        write_predictions=write_predictions,
        options={"guidance_scale": Number(1.5), "temperature": Number(0.5)},
    )
)
