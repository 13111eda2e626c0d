"""Loads examples from records: replaces rejected records, and reads in threads or in worker processes.

A position of a `grain.MapDataset` always gives the same example, so the order of examples does not depend on the number
of threads or workers.
"""

import math
import pickle
from collections.abc import Callable, Sequence
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
_MAX_BUFFER_PER_WORKER = 4
_ALIGNMENT = 64

T = TypeVar("T")


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


class LoadedExamples(grain.MapDataset[Loaded[T]]):
    """Examples of a component by position. A rejected record is replaced by another record of the component.

    The replacement depends on the position only.

    Args:
      records: Records by position.
      load: Function from record, example id and epoch to example. It raises `RejectedRecord` for an invalid record.
      name: Name of the component.
      index: Index of the component.
      max_tries: Number of rejected records after which no replacement is read.
    """

    def __init__(
        self,
        records: grain.MapDataset[Any],
        load: Callable[[Any, str, int], T],
        *,
        name: str,
        index: int = 0,
        max_tries: int,
    ) -> None:
        super().__init__(records)
        self._load, self._name, self._index, self.max_tries = load, name, index, max_tries

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return self.slice(position)
        epoch, length = position // len(self), len(self)
        rejections: list[Rejection] = []
        while len(rejections) < self.max_tries:
            example_id = f"{self._name}/position {position}"
            try:
                record = self._parent[position + len(rejections) * _EPOCHS_TO_REPLACEMENT * length]
                example_id = f"{self._name}/{record.key}{f'#{epoch}' if epoch else ''}"
                example = self._load(record, example_id, epoch)
                return Loaded(example, (self._index, position), tuple(rejections))
            except RejectedRecord as error:
                rejections.append(Rejection(example_id, error.reason, str(error)))
            except PARSE_ERRORS as error:
                detail = str(error) if isinstance(error, JanusError) else describe_error(error)
                rejections.append(Rejection(example_id, RejectReason.MALFORMED, detail))
        return Loaded(None, (self._index, position), tuple(rejections))


def iterate(
    examples: grain.MapDataset[T], *, workers: int = 0, threads: int = 0, prefetch: int = 0
) -> grain.DatasetIterator[T]:
    """Returns an iterator over a dataset.

    Args:
      examples: The dataset.
      workers: Number of processes that read in advance; 0 for none.
      threads: Number of threads that read in advance, in each process; 0 for none. Without threads and workers, an
        example is read when it is requested.
      prefetch: Number of examples to read in advance.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads) if threads else 0)
    if not workers:
        return iter(examples.to_iter_dataset(options))
    prepare_main_process()
    # Each worker has two buffers of this size, one at each end of its queue.
    buffer = min(max(math.ceil(prefetch / workers / 2), 1), _MAX_BUFFER_PER_WORKER)
    dataset = (
        examples.map(_to_array)
        .to_iter_dataset(options)
        .mp_prefetch(grain.MultiprocessingOptions(workers, buffer), worker_init_fn=start_worker)
        .map(_from_array)
    )
    return iter(dataset)


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
