"""Best of N: a judge selects one of several images of each prompt."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.generation.image_sampler import GeneratedImage

Judge = Callable[
    [Sequence[str], UInt8[np.ndarray, "B H W 3"], Sequence[Mapping[str, Any]]],
    Float[np.ndarray, " B"],
]
"""Function of prompts, images and metadata, such as a reward (`janus_jax.rewards`)."""


class ImageModel(Protocol):
    """A model that generates images, such as `Pretrained`."""

    def sample_images(
        self, prompts: Sequence[str], numbers: Sequence[tuple[int, int]], seed: int = ..., **settings: Any
    ) -> list[Image.Image]: ...


@dataclass(frozen=True)
class BestOf:
    """Selection of the best of several candidates.

    The candidates for image i of a prompt are the images i N, ..., i N + N - 1 that the model generates without
    selection.

    Attributes:
      number: Number N of candidates for each image.
      judge: Scores the candidates. Of equally good ones, the first is selected.

    Raises:
      JanusError: `number` is not positive.
    """

    number: int
    judge: Judge

    def __post_init__(self) -> None:
        if not isinstance(self.number, int) or self.number < 1:
            raise JanusError(f"best_of is {self.number!r}; it must be a positive whole number.")

    def stream(
        self,
        candidates: Iterable[GeneratedImage],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        batch_size: int,
    ) -> Iterator[GeneratedImage]:
        """Yields the best candidates, with their scores and the numbers that they had as candidates.

        Args:
          candidates: The candidates of all images, in order.
          prompts: The prompts.
          metadata: Metadata of each prompt, for the judge.
          batch_size: Number of candidates that the judge scores at a time, rounded up to whole images.
        """
        pending: list[GeneratedImage] = []
        for candidate in candidates:
            pending.append(candidate)
            if len(pending) >= batch_size and len(pending) % self.number == 0:
                yield from self._best(pending, prompts, metadata)
                pending = []
        yield from self._best(pending, prompts, metadata)

    def _best(
        self, candidates: Sequence[GeneratedImage], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Iterator[GeneratedImage]:
        if not candidates:
            return
        scores = self.judge(
            [prompts[one.prompt] for one in candidates],
            np.stack([np.asarray(one.image) for one in candidates]),
            [metadata[one.prompt] for one in candidates],
        )
        for start in range(0, len(candidates), self.number):
            best = start + int(np.argmax(scores[start : start + self.number]))
            chosen = candidates[best]
            number = chosen.number
            yield chosen._replace(number=number // self.number, score=float(scores[best]), candidate=number)

    def sample(
        self,
        model: ImageModel,
        prompts: Sequence[str],
        numbers: Sequence[tuple[int, int]],
        metadata: Sequence[Mapping[str, Any]],
        seed: int = 0,
        **settings: Any,
    ) -> list[Image.Image]:
        """Returns the best image of each prompt. Generates the candidates in N batches.

        Args:
          model: The model.
          prompts: Descriptions of images.
          numbers: Prompt index and image index of each image, which select the random keys of its candidates.
          metadata: Metadata of each prompt, for the judge.
          seed: Random seed.
          **settings: Settings of the image sampler.
        """
        batches = [
            model.sample_images(
                prompts, [(prompt, image * self.number + index) for prompt, image in numbers], seed, **settings
            )
            for index in range(self.number)
        ]
        pixels = np.stack([np.asarray(image) for batch in batches for image in batch])
        scores = self.judge([*prompts] * self.number, pixels, [*metadata] * self.number)
        best = np.argmax(np.reshape(scores, (self.number, -1)), axis=0)
        return [batches[number][index] for index, number in enumerate(best.tolist())]
