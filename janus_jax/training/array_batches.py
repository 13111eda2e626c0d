"""Iterates over batches of arrays in memory, and opens data at a saved position."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import numpy as np

from janus_jax.errors import DataChanged, JanusError
from janus_jax.training.trainer import DataStart


@dataclass(frozen=True)
class BatchSplit:
    """This process's share of each batch.

    Attributes:
      batch_size: Examples per batch of all processes together.
      seed: Seed of the order of the examples and of their augmentation.
    """

    batch_size: int
    seed: int
    process_index: int = field(default_factory=jax.process_index)
    process_count: int = field(default_factory=jax.process_count)

    def __post_init__(self) -> None:
        if self.batch_size % self.process_count:
            raise JanusError(
                f"config.batch_size is {self.batch_size}; it must be a multiple of {self.process_count}, the number of "
                f"processes."
            )

    @property
    def local_size(self) -> int:
        """Number of examples of each batch that this process loads."""
        return self.batch_size // self.process_count


@contextlib.contextmanager
def opened(make: Callable[[DataStart], Any], start: DataStart) -> Iterator[Any]:
    """Yields a data iterator at the saved position of this process, and closes it at the end.

    Args:
      make: Returns a `trainer.DataIterator` that also has `set_state(position)` and `close()`.
      start: Where the data starts.
    """
    with contextlib.closing(make(start)) as data:
        if start.positions:
            data.set_state(start.positions[jax.process_index() % len(start.positions)])
        yield data


class ArrayBatches:
    """Endless iterator over random batches of arrays in memory. Batch n depends on n and the seed only.

    Args:
      arrays: Arrays with the same number of examples. A batch contains the same examples of each array.
      split: This process's share of each batch.

    Raises:
      JanusError: The arrays differ in length, or have fewer examples than a batch.
    """

    example_ids = ()

    def __init__(self, arrays: Sequence[np.ndarray], split: BatchSplit) -> None:
        lengths = [len(array) for array in arrays]
        if len(set(lengths)) > 1:
            raise JanusError(f"The training arrays hold {', '.join(map(str, lengths))} examples; give equally many.")
        if lengths[0] < split.batch_size:
            raise JanusError(
                f"There are {lengths[0]} training examples, fewer than config.batch_size {split.batch_size}; lower "
                f"batch_size to at most {lengths[0]}."
            )
        self._arrays, self._split, self._batch = arrays, split, 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng((self._split.seed, self._batch))
        chosen = rng.choice(len(self._arrays[0]), self._split.batch_size, False)
        self._batch += 1
        start = self._split.process_index * self._split.local_size
        local = chosen[start : start + self._split.local_size]
        return tuple(array[local] for array in self._arrays)

    def get_state(self) -> dict[str, Any]:
        """Returns the position: the number of batches read."""
        return {"batch": self._batch}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a saved position."""
        self._batch = int(saved_value(state, "batch"))

    def close(self) -> None:
        """Does nothing: there are no workers."""


def saved_value(state: dict[str, Any], name: str) -> Any:
    """Returns the value with this name in a saved position.

    Raises:
      DataChanged: The position has no such value.
    """
    if name not in state:
        raise DataChanged(f"The data position in the checkpoint has no {name!r}, so it belongs to another kind of data")
    return state[name]
