"""Loads batches of arrays from prepared datasets. The arrays of a record depend on the seed, epoch and record only."""

import bisect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from janus_jax.data.pipeline.dataset import Component, ComponentShard, RecordReader, open_records
from janus_jax.data.pipeline.workers import InlinePool, Pool, ProcessPool, Work
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectCounter, RejectedRecord, Rejection, RejectReason
from janus_jax.errors import DataChanged, JanusError
from janus_jax.files import PARSE_ERRORS, describe_error
from janus_jax.processing import open_image
from janus_jax.training.array_batches import BatchSplit, saved_value

Arrays = tuple[np.ndarray, ...]

MakeArrays = Callable[[Record, np.random.Generator], Arrays]
"""Function from a record to its arrays. Worker processes unpickle it. It may raise `RejectedRecord`."""

_REJECT_WINDOW = 1000
_READ_AHEAD = 2


@dataclass(frozen=True)
class _Worker:
    """Opens the datasets in a worker process.

    A call returns a function from an epoch and a record index to the arrays of the record.
    """

    components: Sequence[Component]
    make: MakeArrays
    seed: int

    def __call__(self) -> Work:
        records = open_all(self.components)
        return lambda task: self._arrays(records, *task)

    def _arrays(self, records: RecordReader, epoch: int, index: int) -> Arrays | Rejection:
        example_id = f"number {index}"
        try:
            record = records.read(index)
            example_id = record.key
            return self.make(record, np.random.default_rng((self.seed, epoch, index)))
        except RejectedRecord as error:
            return Rejection(example_id, error.reason, str(error))
        except PARSE_ERRORS as error:
            return Rejection(example_id, RejectReason.BAD_IMAGE, describe_error(error))


class RecordBatches:
    """Endless iterator over batches from prepared datasets. Records that cannot be used are skipped.

    Args:
      components: Datasets. Every record is used once per epoch.
      make: Makes the arrays of a record. A batch has the same arrays, stacked over its records.
      split: This process's share of each batch.
      workers: Number of worker processes. 0 makes the arrays in this process.
      max_rejected: Largest fraction of the recent records that may be rejected.

    Raises:
      JanusError: A dataset cannot be opened, or there are no records.
    """

    example_ids = ()

    def __init__(
        self,
        components: Sequence[Component],
        make: MakeArrays,
        split: BatchSplit,
        *,
        workers: int,
        max_rejected: float,
    ) -> None:
        total = open_all(components).length
        self._share = ComponentShard(total, split.process_index, split.process_count, split.seed, "images")
        self._split, self._total = split, total
        worker = _Worker(components, make, split.seed)
        self._pool: Pool = ProcessPool(worker, workers) if workers else InlinePool(worker)
        self._read_ahead = split.local_size * (_READ_AHEAD if workers else 1)
        self._requested: deque[int] = deque()
        self._position = 0
        self._rejects = RejectCounter(max_rejected, _REJECT_WINDOW)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Arrays:
        batch: list[Arrays] = []
        while len(batch) < self._split.local_size:
            while len(self._requested) < self._read_ahead:
                location = self._share.locate(self._position + len(self._requested))
                self._requested.append(self._pool.submit(location))
            arrays = self._pool.result(self._requested.popleft())
            self._position += 1
            if isinstance(arrays, Rejection):
                self._rejects.reject(arrays)
            else:
                self._rejects.accept()
                batch.append(arrays)
        return tuple(map(np.stack, zip(*batch, strict=True)))

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON values."""
        return {"position": self._position, "rejects": self._rejects.get_state(), **self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a saved position.

        Raises:
          DataChanged: The position was saved with another seed, number of processes or dataset.
        """
        for name, now in self._fingerprint.items():
            if (saved := saved_value(state, name)) != now:
                raise DataChanged(f"The data position was saved with {name} = {saved}, now it is {now}")
        while self._requested:
            self._pool.cancel(self._requested.pop())
        self._position = int(saved_value(state, "position"))
        self._rejects = self._rejects.with_state(saved_value(state, "rejects"))

    def close(self) -> None:
        """Stops the worker processes."""
        self._pool.close()

    @property
    def _fingerprint(self) -> dict[str, int]:
        return {"seed": self._split.seed, "process_count": self._split.process_count, "records": self._total}


def components_of(directories: Sequence[str], split: str, name: str) -> tuple[Component, ...]:
    """Returns a component for each prepared dataset. `name` identifies them in messages."""
    return tuple(Component(name, directory, split=split) for directory in directories)


def open_all(components: Sequence[Component]) -> RecordReader:
    """Returns a reader of all records of several datasets, in order.

    Raises:
      JanusError: A dataset cannot be opened, or there are no records.
    """
    parts = [open_records(component) for component in components]
    lengths = [part.length for part in parts]
    if not sum(lengths):
        raise JanusError("There are no records to train on; name a prepared dataset in config.data.directories.")
    starts = [0, *np.cumsum(lengths)[:-1].tolist()]

    def read(index: int) -> Any:
        part = bisect.bisect_right(starts, index) - 1
        return parts[part].read(index - starts[part])

    return RecordReader(sum(lengths), read)


def image_of(record: Record, rng: np.random.Generator) -> Image.Image:
    """Returns a random one of a record's images.

    Raises:
      RejectedRecord: The record has no image.
      JanusError: The image cannot be read.
    """
    if not record.images:
        raise RejectedRecord(RejectReason.NO_IMAGE, "the record has no image.")
    return open_image(record.images[rng.integers(len(record.images))])
