"""Generates the images of a benchmark. Each image is saved before its answer is recorded."""

import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

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

    def sample(batch: Sequence[ImageRequest]) -> list[Image.Image]:
        numbers = [(request.prompt_index, request.image_index) for request in batch]
        prompts = [request.prompt for request in batch]
        if best_of is None:
            return model.sample_images(prompts, numbers, seed, **settings)
        metadata = [request.prompt_metadata for request in batch]
        return best_of.sample(model, prompts, numbers, metadata, seed, **settings)

    batches = batch_requests(requests, functools.partial(prompt_length, model.processor), batch_size)
    yield from save_batches(batches, sample, folder, batch_size)


def prompt_length(processor: Processor, request: ImageRequest) -> int:
    """Returns the padded length of the prompt of a request."""
    with prefix_errors(f"The prompt of {request.id}"):
        return bucket_length(len(processor.generation_prompt(request.prompt)))


RequestT = TypeVar("RequestT", bound=ImageRequest)


def batch_requests(
    requests: Sequence[RequestT], length: Callable[[RequestT], int], batch_size: int
) -> list[list[RequestT]]:
    """Groups requests with equal padded prompt length into batches, the longest first."""
    by_length: dict[int, list[RequestT]] = {}
    for request in requests:
        by_length.setdefault(length(request), []).append(request)
    return [
        group[start : start + batch_size]
        for _, group in sorted(by_length.items(), reverse=True)
        for start in range(0, len(group), batch_size)
    ]


def save_batches(
    batches: Sequence[Sequence[RequestT]],
    sample: Callable[[Sequence[RequestT]], list[Image.Image]],
    folder: Path,
    batch_size: int,
) -> Iterator[Mapping[str, str]]:
    """Samples the images of batches of requests, and saves them as PNG.

    Args:
      batches: The batches.
      sample: Returns the images of a batch. It gets full batches: the last request is repeated.
      folder: The run's folder.
      batch_size: Number of images of a full batch.

    Yields:
      File names of a batch by request id.
    """
    with ThreadPoolExecutor(_WRITERS) as writers:
        for batch in batches:
            images = sample([*batch, *[batch[-1]] * (batch_size - len(batch))])
            files = [folder / request.file for request in batch]
            sizes = [request.size for request in batch]
            list(writers.map(_save, images[: len(batch)], files, sizes))
            yield {request.id: request.file for request in batch}


def _save(image: Image.Image, file: Path, size: int | None) -> None:
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    save_png(image, file, compress_level=1)
