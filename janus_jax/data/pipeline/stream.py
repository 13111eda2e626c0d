"""Deterministic, resumable stream of batches from a mixture of datasets, a grain pipeline.

    config = StreamConfig(
        components=(
            Component("captions", "prepared/captions", weight=2),
            Component("chat", "prepared/chat", weight=5),
        ),
        batch_size=8,
    )
    with open_stream(config, processor) as stream:
        batch = next(stream)

When a stage begins, the records are divided into data shards, at least one per process. A process reads its shards and
concatenates their sequences:

    records of a component, shuffled, sharded, transformed   dataset.shard_records    \
    examples; rejected records are replaced                  loading.LoadedExamples    | grain.MapDataset
    mixture of the components                                mixture.Mixture          /
    threads and worker processes                             loading.iterate          \
    packed sequences                                         packed_batches            | grain.IterDataset
    batches on the device                                    open_stream              /

Batches depend on the config, the step and the number of shards, but not on the numbers of workers, threads and
processes. The state is small: the position in each component, and the origins of the examples that wait to be packed.
"""

import copy
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import grain
import numpy as np

from janus_jax.batch import Batch
from janus_jax.data.pipeline.packed_batches import PackedBatch, PackedBatches, PackingReport
from janus_jax.data.pipeline.stream_config import StreamConfig
from janus_jax.data.pipeline.workers import WorkerWatch
from janus_jax.errors import JanusError
from janus_jax.processing import Processor

_SHARDS = "shards"


def open_stream(
    config: StreamConfig,
    processor: Processor,
    *,
    process_index: int = 0,
    process_count: int = 1,
    shards: int = 0,
    workers: int = 0,
    threads: int = 0,
    transfer: Callable[[Batch], Any] | None = None,
) -> "Stream":
    """Opens the components and the data shards of one process.

    Args:
      config: What to read and how to pack it.
      processor: Processor of the model.
      process_index: Index of this process among the training processes.
      process_count: Number of training processes.
      shards: Number of data shards; 0 for the number of processes.
      workers: Number of processes that read, decode and tokenize in advance. 0: this process does so.
      threads: Number of threads that do so, in each worker or in this process. Without threads and workers, this
        happens when a batch is requested.
      transfer: Function from the batch of this process to the value that the stream returns instead, for example the
        batch on the device. It runs one batch ahead, in a thread, as in `grain.experimental.device_put`.

    Raises:
      JanusError: A dataset is missing or has too few records, the shards cannot share the batch evenly, or the number
        of processes does not divide the number of shards.
    """
    shards = shards or process_count
    if min(workers, threads) < 0:
        raise JanusError(f"There are {workers} data workers and {threads} threads; both must be at least 0.")
    if shards % process_count:
        raise JanusError(
            f"The data has {shards} shards, which {process_count} processes cannot share evenly; start a number of "
            f"processes that divides {shards}, or set config.data_shards before the stage begins."
        )
    shards_each = shards // process_count
    # Rounded up, so that each shard has a worker unless there are none.
    each = {"workers": -(-workers // shards_each), "threads": -(-threads // shards_each)}
    first = process_index * shards_each
    datasets = [PackedBatches(config, processor, index, shards, **each) for index in range(first, first + shards_each)]
    dataset = grain.experimental.ZipIterDataset(datasets).map(_concatenate)
    if transfer is not None:
        # As `grain.experimental.device_put`, which does not take arrays that only hold this process's part of a batch.
        prefetch = functools.partial(grain.experimental.ThreadPrefetchIterDataset, prefetch_buffer_size=1)
        dataset = prefetch(prefetch(dataset).map(functools.partial(_transferred, transfer)))
    return Stream(datasets, iter(dataset), WorkerWatch() if workers else None)


def shard_states(states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the states of all data shards. `states` has the result of `Stream.get_state` of each process."""
    return [shard for state in states for shard in state[_SHARDS]]


class Stream(Iterator[Any]):
    """Iterator over the endless batches of one process. Made by `open_stream`.

    Attributes:
      example_ids: Ids of the last batch's examples, by sequence and segment.
    """

    def __init__(
        self,
        datasets: Sequence[PackedBatches],
        iterator: grain.DatasetIterator[PackedBatch],
        watch: WorkerWatch | None,
    ) -> None:
        self.example_ids: tuple[tuple[str, ...], ...] = ()
        self._datasets, self._iterator, self._watch = datasets, iterator, watch
        self._report: PackingReport | None = None
        self._is_closed = False

    def __next__(self) -> Any:
        packed = self._call(self._iterator.__next__)
        self.example_ids, self._report = packed.example_ids, packed.report
        return packed.batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends threads and worker processes. The stream cannot be used afterwards."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._watch is None:
            self._iterator.close()
        else:
            self._watch.close(self._iterator.close)

    def get_state(self) -> dict[str, Any]:
        """Returns the state of this process's shards after the last batch, as JSON values."""
        return {_SHARDS: copy.deepcopy(self._iterator.get_state()["parents"])}

    def set_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continues exactly where the states were saved. The number of processes may have changed.

        Args:
          states: States of all shards, as returned by `shard_states`. Must include this process's shards.

        Raises:
          DataChanged, JanusError: See `PackedBatches.check`.
        """
        by_index = {state["shard"][0]: state for state in states}
        parents = [by_index.get(dataset.shard_index, states[0]) for dataset in self._datasets]
        # Before threads take the states over.
        for dataset, state in zip(self._datasets, parents, strict=True):
            dataset.check(state)
        self._call(functools.partial(self._iterator.set_state, {"parents": parents}))
        self.example_ids, self._report = (), None

    def report(self) -> dict[str, float]:
        """Returns metrics: the used share of each budget, and the numbers of read, truncated and rejected records.

        The shares are averages since the stream was opened or restored. The numbers are totals of the whole run.
        """
        if self._report is None:
            return {}
        sequences, filled, truncated, read, rejected = self._report
        budget = self._datasets[0].config.budget
        capacity = np.maximum(budget.limits * sequences, 1)
        return {
            **{f"fill/{name}": float(fill) for name, fill in zip(budget.names, filled / capacity, strict=True)},
            "records/read": read,
            "records/truncated": truncated,
            **{f"records/rejected/{reason.value}": count for reason, count in rejected.items()},
        }

    def _call(self, function: Callable[[], Any]) -> Any:
        return function() if self._watch is None else self._watch.call(function)


def _concatenate(parts: Sequence[PackedBatch]) -> PackedBatch:
    """Returns the batch of a process from those of its data shards."""
    if len(parts) == 1:
        return parts[0]
    batches, ids, reports = zip(*parts, strict=True)
    return PackedBatch(
        Batch(*(None if arrays[0] is None else np.concatenate(arrays) for arrays in zip(*batches, strict=True))),
        functools.reduce(operator.add, ids),
        PackingReport(*(functools.reduce(operator.add, totals) for totals in zip(*reports, strict=True))),
    )


def _transferred(transfer: Callable[[Batch], Any], packed: PackedBatch) -> PackedBatch:
    return packed._replace(batch=transfer(packed.batch))
