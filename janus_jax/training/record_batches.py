"""Loads batches of arrays from prepared datasets. The arrays of a record depend on the seed, epoch and record only."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from janus_jax.data.pipeline.dataset import Component, RecordSource, derive_seed, shard_records
from janus_jax.data.pipeline.loading import Loaded, LoadedExamples, Ungrouped, complete, iterate
from janus_jax.data.pipeline.workers import WorkerWatch
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectCounter, RejectedRecord, RejectReason
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
class _MakeArrays:
    """Makes the arrays of a record. It is pickled for each worker process."""

    make: MakeArrays
    seed: int

    def __call__(self, record: Record, example_id: str, epoch: int) -> Callable[[], Arrays]:
        return functools.partial(self._arrays, record, epoch)

    def _arrays(self, record: Record, epoch: int) -> Arrays:
        rng = np.random.default_rng((self.seed, epoch, derive_seed(record.key)))
        try:
            return self.make(record.for_epoch(epoch), rng)
        except PARSE_ERRORS as error:
            raise RejectedRecord(RejectReason.BAD_IMAGE, describe_error(error)) from error


class RecordBatches:
    """Endless iterator over batches from prepared datasets. Records that cannot be used are replaced.

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
        self._split, self._workers = split, workers
        self._total = sum(map(len, open_all(components)))
        self._rejects = RejectCounter(max_rejected, _REJECT_WINDOW)
        records = shard_records(components, split.seed, split.process_index, split.process_count)
        tries = self._rejects.max_in_a_row
        self._arrays = LoadedExamples(records, _MakeArrays(make, split.seed), name="images", max_tries=tries).repeat()
        self._position = 0
        self._iterator: Ungrouped[Loaded[Arrays]] | None = None
        self._watch: WorkerWatch | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Arrays:
        if self._iterator is None:
            prefetch = self._split.local_size * _READ_AHEAD
            self._iterator = iterate(self._arrays[self._position :], complete, workers=self._workers, prefetch=prefetch)
            self._watch = WorkerWatch() if self._workers else None
        examples = itertools.islice(self._iterator, self._split.local_size)
        loaded = list(examples) if self._watch is None else self._watch.call(lambda: list(examples))
        for one in loaded:
            for rejection in one.rejections:
                self._rejects.reject(rejection)
            self._rejects.accept()
        self._position += len(loaded)
        return tuple(map(np.stack, zip(*(one.example for one in loaded if one.example is not None), strict=True)))

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
        self.close()
        self._position = int(saved_value(state, "position"))
        self._rejects = self._rejects.with_state(saved_value(state, "rejects"))

    def close(self) -> None:
        """Stops the worker processes."""
        if self._iterator is not None:
            close, self._iterator = self._iterator.close, None
            close() if self._watch is None else self._watch.close(close)

    @property
    def _fingerprint(self) -> dict[str, int]:
        return {"seed": self._split.seed, "process_count": self._split.process_count, "records": self._total}


def components_of(directories: Sequence[str], split: str, name: str) -> tuple[Component, ...]:
    """Returns a component for each prepared dataset. `name` identifies them in messages."""
    return tuple(Component(name, directory, split=split) for directory in directories)


def open_all(components: Sequence[Component]) -> list[RecordSource]:
    """Opens several datasets.

    Raises:
      JanusError: A dataset cannot be opened, or there are no records.
    """
    sources = [RecordSource(component) for component in components]
    if not any(map(len, sources)):
        raise JanusError("There are no records to train on; name a prepared dataset in config.data.directories.")
    return sources


def image_of(record: Record, rng: np.random.Generator) -> Image.Image:
    """Returns a random one of a record's images.

    Raises:
      RejectedRecord: The record has no image.
      JanusError: The image cannot be read.
    """
    if not record.images:
        raise RejectedRecord(RejectReason.NO_IMAGE, "the record has no image.")
    return open_image(record.images[rng.integers(len(record.images))])
