"""Image tokens that become pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from janus_jax.generation.engine.job import ImageJob
from janus_jax.generation.engine.requests import Usage


@dataclass(frozen=True, eq=False)
class PendingPicture:
    """Image tokens to decode.

    Attributes:
      number: Index of the image in its request.
      tokens: The image tokens.
      progress: 1 for a finished image; otherwise the finished part, and `tokens` ends with repeated tokens.
    """

    number: int
    tokens: Int[np.ndarray, " T"]
    progress: float


class ProgressOfImage:
    """Collects the tokens of one image, and passes them to its request when a picture is due."""

    def __init__(self, job: ImageJob, number: int, num_tokens: int, partial_images: int) -> None:
        """Starts an image.

        Args:
          job: The request.
          number: Index of the image in its request.
          num_tokens: Number of tokens of the image.
          partial_images: Number of unfinished pictures.
        """
        self._job, self._number, self._num_tokens = job, number, num_tokens
        self._parts = partial_images + 1
        self._tokens: list[int] = []

    def receive(self, new: Sequence[int]) -> bool:
        """See `Group.receive`."""
        part = len(self._tokens) * self._parts // self._num_tokens
        self._tokens.extend(new)
        count = len(self._tokens)
        self._job.usage += Usage(completion_tokens=len(new))
        if count * self._parts // self._num_tokens > part:
            self._job.pending.append(PendingPicture(self._number, self._filled(), count / self._num_tokens))
        return count == self._num_tokens

    def _filled(self) -> Int[np.ndarray, " T"]:
        """Returns the tokens followed by tokens that repeat those above."""
        filled, side = list(self._tokens), int(self._num_tokens**0.5)
        for position in range(len(filled), self._num_tokens):
            filled.append(filled[position - side] if position >= side else filled[position - 1])
        return np.array(filled, np.int32)
