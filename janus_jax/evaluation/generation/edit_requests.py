"""Requests for edited images: the items of image editing benchmarks."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, get_args

from PIL import Image

from janus_jax.evaluation.benchmark import MODEL_DEFAULT, Choice, Number, Options
from janus_jax.evaluation.generation.generate_images import batch_requests, save_batches
from janus_jax.evaluation.generation.image_requests import ImageRequest
from janus_jax.files import prefix_errors
from janus_jax.generation.padding import bucket_length
from janus_jax.processing import (
    Background,
    EditingFormat,
    ImageSource,
    Processor,
    editing_style,
    editing_tokens,
    open_image,
)

EDIT_OPTIONS: Mapping[str, Choice | Number] = {
    "style": Choice(*get_args(EditingFormat)),
    "padding": Choice("cut", "keep"),
    "guidance_scale": Number(None),
    "image_guidance_scale": Number(None),
    "temperature": Number(None),
}
"""Options of every image editing benchmark: the editing style of the model, whether the padding that makes images
square is cut off the edited images, and the settings of the sampler."""


@dataclass(frozen=True, kw_only=True)
class EditRequest(ImageRequest):
    """A request for one edited image. `prompt` is the instruction.

    Attributes:
      source: The source image.
      source_name: Name of the source image within the benchmark.
    """

    source: ImageSource = field(repr=False)
    source_name: str

    @property
    def inputs(self) -> list[str]:
        """See `ImageRequest`. The source image is represented by its name."""
        return [*super().inputs, self.source_name]

    @property
    def image_files(self) -> list[Path]:
        """See `ImageRequest`."""
        return [Path(self.source)] if isinstance(self.source, os.PathLike) else []


class EditModel(Protocol):
    """A model that edits images, such as `Pretrained`."""

    @property
    def processor(self) -> Processor: ...

    def sample_edits(
        self,
        edits: Sequence[tuple[Sequence[ImageSource], str]],
        numbers: Sequence[tuple[int, int]],
        seed: int = ...,
        **settings: Any,
    ) -> list[Image.Image]: ...


def edit_settings(options: Options) -> dict[str, Any]:
    """Returns the settings of `EditSampler` that the options of a benchmark select."""
    numbers = [name for name, option in EDIT_OPTIONS.items() if isinstance(option, Number)]
    given = {name: float(options[name]) for name in numbers if options[name] != MODEL_DEFAULT}
    return {"style": options["style"], **given}


def generate_edits(
    model: EditModel,
    requests: Sequence[EditRequest],
    folder: Path,
    *,
    options: Options,
    seed: int,
    batch_size: int,
    background: Background = "none",
    **settings: Any,
) -> Iterator[Mapping[str, str]]:
    """Generates edited images in batches and saves them as PNG. See `generate_images`.

    Args:
      options: Values of `EDIT_OPTIONS`.
      background: Background of transparent pixels of the source images, see `Background`.
      **settings: Further settings of `EditSampler`, such as `parallel_window`.

    Raises:
      JanusError: An instruction is too long or invalid, or a source image is unreadable.
    """
    processor, style = model.processor, editing_style(cast(EditingFormat, options["style"]))
    settings = edit_settings(options) | settings

    def length(request: EditRequest) -> int:
        with prefix_errors(f"The instruction of {request.id}"):
            sequence = editing_tokens(processor, style, request.prompt, [True])
        return bucket_length(len(sequence) - processor.num_gen_tokens)

    def sample(batch: Sequence[EditRequest]) -> list[Image.Image]:
        sources = [_open_source(request, background) for request in batch]
        edits = [([source], request.prompt) for source, request in zip(sources, batch, strict=True)]
        numbers = [(request.prompt_index, request.image_index) for request in batch]
        images = model.sample_edits(edits, numbers, seed, **settings)
        if options["padding"] == "keep":
            return images
        pairs = zip(images, sources, strict=True)
        return [style.without_padding(image, source.size, processor.min_side) for image, source in pairs]

    yield from save_batches(batch_requests(requests, length, batch_size), sample, folder, batch_size)


def _open_source(request: EditRequest, background: Background) -> Image.Image:
    with prefix_errors(f"The source image of {request.id}"):
        return open_image(request.source, background=background)
