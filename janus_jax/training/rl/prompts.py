"""Prompts of reinforcement learning, with values for the rewards."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Int

from janus_jax.buckets import as_path
from janus_jax.errors import DataChanged, JanusError
from janus_jax.files import read_lines
from janus_jax.registries import find_attribute
from janus_jax.training.array_batches import saved_value


@dataclass(frozen=True)
class RewardPrompt:
    """A prompt and further values for the rewards, such as the objects that a detector looks for."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(name: str, where: str) -> list[RewardPrompt]:
    """Reads prompts.

    Args:
      name: A text file with one prompt per line; a JSONL file of objects with the field `prompt`; or `MODULE:FUNCTION`,
        which returns such objects. The other fields of an object are its metadata.
      where: Config field that contains the name, for messages.

    Raises:
      JanusError: The file cannot be read, has no prompts, or an object has no prompt.
    """
    if not name:
        raise JanusError(f"{where} is empty; set it to a file of prompts, or to MODULE:FUNCTION.")
    path = as_path(name)
    if ":" in name and "://" not in name and not path.exists():
        prompts = [_from_object(one, f"{where} {name}") for one in find_attribute(name, where)()]
    else:
        lines = read_lines(path, "correct the line")
        is_json = path.suffix in (".jsonl", ".json")
        numbered = enumerate(lines, 1)
        prompts = [_from_json(text, path, n) if is_json else RewardPrompt(text) for n, text in numbered]
    if not prompts:
        raise JanusError(f"{where} {name} has no prompts; add at least one.")
    return prompts


def _from_json(text: str, path: Path, number: int) -> RewardPrompt:
    where = f"{path}, prompt {number},"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JanusError(f"{where} is not valid JSON ({error}); write one object per line.") from error
    return _from_object(value, where)


def _from_object(value: Any, where: str) -> RewardPrompt:
    text = value.get("prompt") if isinstance(value, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise JanusError(f"{where} has {value!r:.80}; give an object with the field prompt, a text.")
    return RewardPrompt(text, {key: item for key, item in value.items() if key != "prompt"})


class PromptBatch(NamedTuple):
    """The prompts of a step, the same in all processes.

    Attributes:
      number: Number of the batch, counted from 0. It selects the random keys of the step.
      indices: Numbers of the prompts.
    """

    number: int
    indices: Int[np.ndarray, " P"]


class PromptBatches:
    """Endless iterator over batches of prompts. Each epoch has all prompts in a random order.

    Batch n depends on n, the seed and the prompts only.

    Args:
      prompts: The prompts.
      batch_size: Prompts per batch.
      seed: Seed of the order.
    """

    def __init__(self, prompts: Sequence[RewardPrompt], batch_size: int, seed: int) -> None:
        self._count, self._batch_size, self._seed, self._next = len(prompts), batch_size, seed, 0
        self._digest = hashlib.sha256("\n".join(prompt.text for prompt in prompts).encode()).hexdigest()[:16]
        self._orders: dict[int, Int[np.ndarray, " N"]] = {}
        self.example_ids: Sequence[Sequence[str]] = ()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> PromptBatch:
        first, number = self._next * self._batch_size, self._next
        indices = np.array([self._index(position) for position in range(first, first + self._batch_size)])
        self._next += 1
        self.example_ids = [[str(index)] for index in indices]
        return PromptBatch(number, indices)

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self._count)
        if epoch not in self._orders:
            # A batch may need the end of one epoch and the start of the next.
            self._orders = {key: order for key, order in self._orders.items() if key >= epoch - 1}
            self._orders[epoch] = np.random.default_rng((self._seed, epoch)).permutation(self._count)
        return int(self._orders[epoch][offset])

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch."""
        return self.position(self._next)

    def position(self, number: int) -> dict[str, Any]:
        """Returns the position before batch `number`."""
        return {"batch": number, "prompts": self._digest}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a saved position.

        Raises:
          DataChanged: The position belongs to other prompts.
        """
        if saved_value(state, "prompts") != self._digest:
            raise DataChanged("The prompts in config.stages are not those of the checkpoint")
        self._next = int(saved_value(state, "batch"))

    def close(self) -> None:
        """Does nothing: there are no workers."""


def texts(prompts: Iterable[RewardPrompt]) -> list[str]:
    """Returns the texts of prompts."""
    return [prompt.text for prompt in prompts]
