"""Data stream of one process, which reads one or more data shards.

When a stage begins, the records are divided into at least one shard per process. Each shard is a `Stream` with its own
order and state. A process concatenates the sequences of its shards. A run can therefore resume on any number of
processes that divides the number of shards, with the same global batches.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from janus_jax.batch import Batch
from janus_jax.data.pipeline.stream import Stream, StreamConfig, open_stream
from janus_jax.errors import JanusError
from janus_jax.processing import Processor

_SHARDS = "shards"


def open_sharded_stream(
    config: StreamConfig, processor: Processor, *, process_index: int, process_count: int, shards: int, workers: int
) -> "ShardedStream":
    """Opens the shards of one process.

    Args:
      config: What to read and how to pack it.
      processor: Processor of the model.
      process_index: Index of this process among the training processes.
      process_count: Number of training processes.
      shards: Number of data shards.
      workers: Total number of data workers of this process.

    Raises:
      JanusError: The number of processes does not divide the number of shards; see also `open_stream`.
    """
    if shards % process_count:
        raise JanusError(
            f"The data has {shards} shards, which {process_count} processes cannot share evenly; start a number of "
            f"processes that divides {shards}, or set config.data_shards before the stage begins."
        )
    shards_each = shards // process_count
    with contextlib.ExitStack() as stack:
        # Rounded up, so that each shard has a worker unless there are none.
        workers_each = -(-workers // shards_each)
        first = process_index * shards_each
        streams = [
            stack.enter_context(open_stream(config, processor, index, shards, workers=workers_each))
            for index in range(first, first + shards_each)
        ]
        return ShardedStream(streams, stack.pop_all())


def merge_shard_states(states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the states of all shards. `states` has the result of `ShardedStream.get_state` for each process."""
    return [shard for state in states for shard in state[_SHARDS]]


class ShardedStream(Iterator[Batch]):
    """Iterator over the endless batches of one process. Made by `open_sharded_stream`."""

    def __init__(self, streams: Sequence[Stream], stack: contextlib.ExitStack) -> None:
        self._streams, self._stack = streams, stack

    def __next__(self) -> Batch:
        batches = [next(stream) for stream in self._streams]
        if len(batches) == 1:
            return batches[0]
        return Batch(*(None if arrays[0] is None else np.concatenate(arrays) for arrays in zip(*batches, strict=True)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def example_ids(self) -> tuple[tuple[str, ...], ...]:
        """Ids of the last batch's examples, by sequence and segment."""
        return tuple(ids for stream in self._streams for ids in stream.example_ids)

    def get_state(self) -> dict[str, Any]:
        """Returns the state of this process's shards as JSON values. Must be called between two batches."""
        return {_SHARDS: [stream.get_state() for stream in self._streams]}

    def set_state(self, states: Sequence[dict[str, Any]]) -> None:
        """Continues exactly where the states were saved. The number of processes may have changed.

        Args:
          states: States of all shards, as returned by `merge_shard_states`. Must include this process's shards.

        Raises:
          JanusError: See `Stream.set_state`.
        """
        by_index = {state["shard"][0]: state for state in states}
        for stream in self._streams:
            stream.set_state(by_index[stream.shard_index])
