"""Requests for images: the items of image generation benchmarks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Number, missing_files

PREDICTIONS = "predictions"
"""Folder within the run's folder that official scorers read."""

SAMPLING_OPTIONS: Mapping[str, Number] = {"guidance_scale": Number(None), "temperature": Number(None)}
"""Options of every image generation benchmark. The model's defaults are its authors' values."""


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """A request for one image of a prompt. Its answer is the name of the image's file.

    The image depends only on the prompt, the two indices, the seed of the run and the model.

    Attributes:
      id: Unique id within the benchmark.
      group: The same for all images of a prompt.
      prompt: Description of the image.
      prompt_index: Index of the prompt within the benchmark.
      image_index: Index of the image among those of its prompt.
      file: Name of the image's file, relative to the run's folder.
      size: Width and height of the saved image in pixels; None keeps the size that the model generates.
      data: The benchmark's data folder, which scores read references from.
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
    def inputs(self) -> list[str]:
        """Everything that the answer depends on."""
        return [self.prompt, *map(str, (self.prompt_index, self.image_index, self.file, self.size))]


def requests_for_prompt(
    prompt: str, prompt_index: int, files: Sequence[str], data: Path, size: int | None = None
) -> list[ImageRequest]:
    """Returns one request per file; see `ImageRequest` for the arguments."""
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
    """Returns the paths of all generated images.

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
    """The `write_predictions` function of benchmarks with an official scorer that reads the generated files.

    Raises:
      JanusError: A file is missing.
    """
    generated_files(requests, answers)
