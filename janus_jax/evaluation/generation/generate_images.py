"""Drawing as the runner's work: every picture is a file before its answer is written down."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from janus_jax.evaluation.benchmark import OWN, Options
from janus_jax.evaluation.generation.image_requests import DRAWING, Picture
from janus_jax.evaluation.runner import Work
from janus_jax.files import naming
from janus_jax.generation.padding import bucket_length
from janus_jax.image_files import save_png
from janus_jax.processing import Processor

_WRITERS = min(8, os.cpu_count() or 1)


class Painter(Protocol):
    """What draws: a `Pretrained`."""

    @property
    def processor(self) -> Processor: ...

    @property
    def sampler_settings(self) -> Collection[str]:
        """Names of the settings that it draws with."""
        ...

    def sample_images(
        self,
        prompts: Sequence[str],
        numbers: Sequence[tuple[int, int]],
        seed: int = ...,
        **settings: Any,
    ) -> list[Image.Image]:
        """An image of each of these prompts."""
        ...


def drawing(model: Painter, folder: Path, options: Options, seed: int, batch_size: int) -> Work[Picture]:
    """Has a model draw, `batch_size` pictures at a time, into files of a folder.

    Batches are of prompts that are padded to one length, and always full: a model compiles for few shapes, and what a
    picture is drawn with does not change it, but for rounding.

    Args:
      folder: the run's.
      options: those of `picture.DRAWING`, at least. A benchmark's defaults are for all models: those of settings that a
        model has not, such as a flow's temperature, are passed over.
    """
    known = [name for name in DRAWING if name in model.sampler_settings]
    settings = {name: float(options[name]) for name in known if options[name] != OWN}

    def work(pictures: Sequence[Picture]) -> Iterator[Mapping[str, str]]:
        with ThreadPoolExecutor(_WRITERS) as writers:
            for batch in batched(model.processor, pictures, batch_size):
                full = [*batch, *[batch[-1]] * (batch_size - len(batch))]
                images = model.sample_images(
                    [picture.prompt for picture in full],
                    [(picture.prompt_number, picture.number) for picture in full],
                    seed,
                    **settings,
                )
                files = [folder / picture.file for picture in batch]
                sides = [picture.side for picture in batch]
                list(writers.map(save, images[: len(batch)], files, sides))
                yield {picture.id: picture.file for picture in batch}

    return work


def batched(processor: Processor, pictures: Sequence[Picture], size: int) -> list[list[Picture]]:
    """Pictures whose prompts are padded to one length together, the longest first."""
    by_length: dict[int, list[Picture]] = {}
    for picture in pictures:
        with naming(f"The prompt of {picture.id}"):
            length = bucket_length(len(processor.generation_prompt(picture.prompt)))
        by_length.setdefault(length, []).append(picture)
    return [
        alike[start : start + size]
        for _, alike in sorted(by_length.items(), reverse=True)
        for start in range(0, len(alike), size)
    ]


def save(image: Image.Image, file: Path, side: int | None) -> None:
    """Writes a PNG that outlives a power cut; a killed process leaves no half of it.

    Args:
      side: pixels of a side, to which it is scaled (Lanczos); None: as it is.

    Raises:
      JanusError: it cannot be written.
      StorageFull: the disk is full.
    """
    if side is not None and image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    save_png(image, file, compress_level=1)
