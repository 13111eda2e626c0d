"""Requests for images: the items of image generation benchmarks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Number, missing_files

PREDICTIONS = "predictions"
"""Subfolder of the run's folder that official scorers read."""

SAMPLING_OPTIONS: Mapping[str, Number] = {"guidance_scale": Number(None), "temperature": Number(None)}
"""Options of every image generation benchmark. By default, a model uses the values of its authors."""


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """A request for one image of a prompt. The answer to a request is the file name of the image.

    The image depends only on the model, its settings, the prompt, the two indices and the seed of the run.

    Attributes:
      id: Unique id within the benchmark.
      group: Index of the prompt, as text. All images of a prompt are one group.
      prompt: Text from which the image is generated.
      prompt_index: Index of the prompt within the benchmark.
      image_index: Index of the image among the images of its prompt.
      file: Path of the image file, relative to the run's folder.
      size: Width and height of the saved image in pixels (bicubic); None keeps the size that the model generates.
      data: Data folder of the benchmark, from which the `score` function reads reference images.
    """

    id: str
    group: str
    prompt: str = field(repr=False)
    prompt_index: int
    image_index: int
    file: str
    size: int | None = None
    data: Path = field(repr=False)

    @property
    def prompt_metadata(self) -> Mapping[str, Any]:
        """Metadata of the prompt, for the judge of best of N."""
        return {}

    @property
    def inputs(self) -> list[str]:
        """Everything that the answer depends on, except the model."""
        return [self.prompt, *map(str, (self.prompt_index, self.image_index, self.file, self.size))]

    @property
    def image_files(self) -> list[Path]:
        """Paths of the images that the request needs."""
        return []


def requests_for_prompt(
    prompt: str, prompt_index: int, files: Sequence[str], data: Path, size: int | None = None
) -> list[ImageRequest]:
    """Returns the requests for one prompt, one per file. The arguments are attributes of `ImageRequest`."""
    return [
        ImageRequest(
            id=file.removeprefix(f"{PREDICTIONS}/").removesuffix(".png"),
            group=str(prompt_index),
            prompt=prompt,
            prompt_index=prompt_index,
            image_index=image_index,
            file=file,
            size=size,
            data=data,
        )
        for image_index, file in enumerate(files)
    ]


def generated_files(requests: Sequence[ImageRequest], answers: Answers) -> list[Path]:
    """Returns the paths of all generated images, in the order of the requests.

    Raises:
      JanusError: A file is missing.
    """
    ids = {Path(answers[request.id]): request.id for request in requests}
    for file in missing_files(ids):
        raise JanusError(
            f"{file} was generated but is missing now; remove the line of {ids[file]} from the run's answers.jsonl to "
            f"generate it again."
        )
    return list(ids)


def check_generated_files(requests: Sequence[ImageRequest], answers: Answers, folder: Path) -> None:
    """Checks that all images exist, and writes nothing.

    The `write_predictions` function of benchmarks whose scorer reads the generated images themselves.

    Raises:
      JanusError: A file is missing.
    """
    generated_files(requests, answers)
