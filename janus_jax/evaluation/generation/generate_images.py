"""Generates the images of a benchmark. Each image is saved before its answer is recorded."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from janus_jax.evaluation.benchmark import MODEL_DEFAULT, Options
from janus_jax.evaluation.generation.image_requests import SAMPLING_OPTIONS, ImageRequest
from janus_jax.files import prefix_errors
from janus_jax.generation.padding import bucket_length
from janus_jax.image_files import save_png
from janus_jax.processing import Processor

if TYPE_CHECKING:
    from janus_jax.generation.best_of import BestOf

_WRITERS = min(8, os.cpu_count() or 1)


class ImageModel(Protocol):
    """A model that generates images, such as `Pretrained`."""

    @property
    def processor(self) -> Processor: ...

    @property
    def sampler_settings(self) -> Collection[str]: ...

    def sample_images(
        self, prompts: Sequence[str], numbers: Sequence[tuple[int, int]], seed: int = ..., **settings: Any
    ) -> list[Image.Image]: ...


def generate_images(
    model: ImageModel,
    requests: Sequence[ImageRequest],
    folder: Path,
    *,
    options: Options,
    seed: int,
    batch_size: int,
    best_of: "BestOf | None" = None,
    **settings: Any,
) -> Iterator[Mapping[str, str]]:
    """Generates images in batches and saves them as PNG.

    The prompts of a batch have the same padded length, and batches are always full, so that few shapes are compiled.
    Except for rounding, an image does not depend on the other requests of its batch.

    Args:
      folder: The run's folder.
      options: Options of the benchmark. Sampling options that the model does not have are ignored; JanusFlow, for
        example, has no temperature.
      batch_size: Number of images generated at a time.
      best_of: Selects each image from several candidates. None: no selection.
      **settings: Further settings of the model's image sampler, such as `parallel_window`.

    Yields:
      File names of a batch by request id.

    Raises:
      JanusError: A prompt is too long, or a file cannot be written.
      StorageFull: The disk is full.
    """
    names = [name for name in SAMPLING_OPTIONS if name in model.sampler_settings]
    settings |= {name: float(options[name]) for name in names if options[name] != MODEL_DEFAULT}
    with ThreadPoolExecutor(_WRITERS) as writers:
        for batch in batch_requests(model.processor, requests, batch_size):
            padded = [*batch, *[batch[-1]] * (batch_size - len(batch))]
            prompts = [request.prompt for request in padded]
            numbers = [(request.prompt_index, request.image_index) for request in padded]
            if best_of is None:
                images = model.sample_images(prompts, numbers, seed, **settings)
            else:
                metadata = [request.prompt_metadata for request in padded]
                images = best_of.sample(model, prompts, numbers, metadata, seed, **settings)
            files = [folder / request.file for request in batch]
            sizes = [request.size for request in batch]
            list(writers.map(_save, images[: len(batch)], files, sizes))
            yield {request.id: request.file for request in batch}


def batch_requests(processor: Processor, requests: Sequence[ImageRequest], batch_size: int) -> list[list[ImageRequest]]:
    """Groups requests with equal padded prompt length into batches, the longest first."""
    by_length: dict[int, list[ImageRequest]] = {}
    for request in requests:
        with prefix_errors(f"The prompt of {request.id}"):
            length = bucket_length(len(processor.generation_prompt(request.prompt)))
        by_length.setdefault(length, []).append(request)
    return [
        group[start : start + batch_size]
        for _, group in sorted(by_length.items(), reverse=True)
        for start in range(0, len(group), batch_size)
    ]


def _save(image: Image.Image, file: Path, size: int | None) -> None:
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    save_png(image, file, compress_level=1)
