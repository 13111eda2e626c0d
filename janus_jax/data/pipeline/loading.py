"""Loads examples from records: replaces rejected records, and reads in threads or in worker processes.

A position of a `grain.MapDataset` always gives the same example, so the order of examples does not depend on the number
of threads or workers.
"""

import itertools
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import grain
import numpy as np
from jaxtyping import UInt8

from janus_jax.data.pipeline.workers import prepare_main_process, start_worker
from janus_jax.data.rejects import RejectedRecord, Rejection, RejectReason
from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, describe_error

# A rejected record is replaced by the one at the same position of a much later epoch, which is a random record.
_EPOCHS_TO_REPLACEMENT = 2**20
# Examples that are loaded together. A worker's groups are smaller, because they wait in shared memory, and containers
# may have little of it.
_GROUP = 16
_GROUP_OF_WORKER = 4
_MAX_BUFFER_PER_WORKER = 2
_ALIGNMENT = 64

T = TypeVar("T")

Load = Callable[[Any, str, int], Callable[[], T]]
"""Function from record, example id and epoch to a function that completes the example, such as by decoding its images.

Both raise `RejectedRecord` for an invalid record. The first one does the work that needs little memory. Running it for
a group of examples before the first of them is completed takes less time, because images displace code and tables from
the CPU caches.
"""


class Loaded(NamedTuple, Generic[T]):
    """An example of a component.

    Attributes:
      example: The example; None if `LoadedExamples.max_tries` records were rejected.
      origin: Index of the component, and the position in the order of its records.
      rejections: The rejected records that the example replaces.
    """

    example: T | None
    origin: tuple[int, int]
    rejections: tuple[Rejection, ...] = ()


class Started(NamedTuple, Generic[T]):
    """An example to complete.

    Attributes:
      examples: Dataset of the example.
      position: Position in the order of its records.
      rejections: The rejected records that the example replaces.
      example_id: Id of the example.
      complete: Function that completes the example; None if too many records were rejected.
    """

    examples: "LoadedExamples[T]"
    position: int
    rejections: tuple[Rejection, ...]
    example_id: str
    complete: Callable[[], T] | None


class LoadedExamples(grain.MapDataset[Started[T]]):
    """Examples of a component by position, to be completed by `complete`.

    A rejected record is replaced by another record of the component, which depends on the position only.

    Args:
      records: Records by position.
      load: Starts an example.
      name: Name of the component.
      index: Index of the component.
      max_tries: Number of rejected records after which no replacement is read.
    """

    def __init__(
        self, records: grain.MapDataset[Any], load: Load[T], *, name: str, index: int = 0, max_tries: int
    ) -> None:
        super().__init__(records)
        self._load, self._name, self._index, self._max_tries = load, name, index, max_tries
        self._length = len(records)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: Any) -> Any:
        return self.slice(position) if isinstance(position, slice) else self._start(position)

    def complete(self, started: Started[T]) -> Loaded[T]:
        """Completes an example, or its replacement if the record is rejected."""
        while started.complete is not None:
            try:
                return Loaded(started.complete(), (self._index, started.position), started.rejections)
            except _INVALID as error:
                rejections = (*started.rejections, _rejection(started.example_id, error))
                started = self._start(started.position, rejections)
        return Loaded(None, (self._index, started.position), started.rejections)

    def _start(self, position: int, rejections: tuple[Rejection, ...] = ()) -> Started[T]:
        epoch = position // self._length
        while len(rejections) < self._max_tries:
            example_id = f"{self._name}/position {position}"
            try:
                record = self._parent[position + len(rejections) * _EPOCHS_TO_REPLACEMENT * self._length]
                example_id = f"{self._name}/{record.key}{f'#{epoch}' if epoch else ''}"
                return Started(self, position, rejections, example_id, self._load(record, example_id, epoch))
            except _INVALID as error:
                rejections = (*rejections, _rejection(example_id, error))
        return Started(self, position, rejections, "", None)


_INVALID: tuple[type[Exception], ...] = (RejectedRecord, *PARSE_ERRORS)


def _rejection(example_id: str, error: Exception) -> Rejection:
    if isinstance(error, RejectedRecord):
        return Rejection(example_id, error.reason, str(error))
    detail = str(error) if isinstance(error, JanusError) else describe_error(error)
    return Rejection(example_id, RejectReason.MALFORMED, detail)


def complete(group: Sequence[Started[T]]) -> list[Loaded[T]]:
    """Completes the examples of a group."""
    return [started.examples.complete(started) for started in group]


def iterate(
    elements: grain.MapDataset[Any],
    group: Callable[[Sequence[Any]], Sequence[T]] = list,
    *,
    workers: int = 0,
    threads: int = 0,
    prefetch: int = 0,
) -> "Ungrouped[T]":
    """Returns an iterator over the elements of a dataset. Elements are read in groups.

    Args:
      elements: The dataset.
      group: Function that is applied to each group, such as `complete`.
      workers: Number of processes that read in advance; 0 for none.
      threads: Number of threads that read in advance, in each process; 0 for none. Without threads and workers, a group
        is read when its first element is requested.
      prefetch: Number of elements to read in advance.
    """
    size = _GROUP_OF_WORKER if workers else _GROUP
    groups, prefetch = elements.batch(size, batch_fn=group), -(-prefetch // size)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads) if threads else 0)
    if not workers:
        return Ungrouped(iter(groups.to_iter_dataset(options)))
    prepare_main_process()
    # Each worker has two buffers of this size, one at each end of its queue.
    buffer = min(max(math.ceil(prefetch / workers / 2), 1), _MAX_BUFFER_PER_WORKER)
    dataset = (
        groups.map(_to_array)
        .to_iter_dataset(options)
        .mp_prefetch(grain.MultiprocessingOptions(workers, buffer), worker_init_fn=start_worker)
        .map(_from_array)
    )
    return Ungrouped(iter(dataset))


class Ungrouped(Iterator[T]):
    """Iterator over the elements of groups. Faster than grain's flat map."""

    def __init__(self, groups: grain.DatasetIterator[list[T]]) -> None:
        self._elements, self.close = itertools.chain.from_iterable(groups), groups.close

    def __next__(self) -> T:
        return next(self._elements)


def _to_array(value: Any) -> UInt8[np.ndarray, " bytes"]:
    """Serializes a value into one array, which grain passes in one block of shared memory.

    The message in the worker's pipe is then so short that the kernel writes it at once. A killed worker cannot leave
    half a message, which its reader would wait for.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    sizes = np.array([len(parts), *map(len, parts)], np.int64)
    starts = _starts(sizes[1:])
    array = np.empty(starts[-1], np.uint8)
    array[: sizes.nbytes] = sizes.view(np.uint8)
    for start, part in zip(starts, parts, strict=False):
        array[start : start + len(part)] = np.frombuffer(part, np.uint8)
    return array


def _from_array(array: UInt8[np.ndarray, " bytes"]) -> Any:
    """Returns the value of an array from `_to_array`."""
    content = np.array(array)  # Copied, to release the shared memory.
    count = int(content[:8].view(np.int64)[0])
    sizes = content[8 : 8 * (count + 1)].view(np.int64)
    parts: list[Any] = [content[start : start + size] for start, size in zip(_starts(sizes), sizes, strict=False)]
    return pickle.loads(parts[0], buffers=parts[1:])


def _starts(sizes: Sequence[int] | np.ndarray) -> list[int]:
    """Returns the aligned position of each part, and the end of the last one."""
    starts = [8 * (len(sizes) + 1)]
    for size in sizes:
        starts[-1] = -(-starts[-1] // _ALIGNMENT) * _ALIGNMENT
        starts.append(starts[-1] + int(size))
    return starts
