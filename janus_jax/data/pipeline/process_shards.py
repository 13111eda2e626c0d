"""The rows of one process, of a stream that any number of processes may share.

The records are dealt into shares when a stage begins, as many as there are processes then or more. A share is a
`Stream` with an order and a state of its own; a process that holds several lays their rows one after the other. So a
run goes on with any number of processes that divides the shares, and the whole batch is the same.
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

_SHARES = "shares"


def open_sharded_stream(
    config: StreamConfig, processor: Processor, process_index: int, process_count: int, shares: int, workers: int
) -> "ShardedStream":
    """Opens those shares that are this process's.

    Args:
      process_index, process_count: of the processes that train together.
      shares: how many there are.
      workers: processes that read ahead, for all shares of this process together.

    Raises:
      JanusError: the shares cannot be dealt out evenly; see also `open_stream`.
    """
    if shares % process_count:
        raise JanusError(
            f"The data are dealt into {shares} shares, which {process_count} processes cannot hold evenly; start a "
            f"number of processes that divides {shares}, or set config.data_shards before the stage begins."
        )
    mine = shares // process_count
    with contextlib.ExitStack() as stack:
        # Each share has at least one, where there are any.
        workers_each = -(-workers // mine)
        first = process_index * mine
        streams = [
            stack.enter_context(open_stream(config, processor, number, shares, workers_each))
            for number in range(first, first + mine)
        ]
        return ShardedStream(streams, stack.pop_all())


def merge_shard_states(states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The states of all shares, in order, of those of all processes as `ShardedStream.get_state` gave them."""
    return [share for state in states for share in state[_SHARES]]


class ShardedStream(Iterator[Batch]):
    """Batches of this process's rows, without end. `open_sharded_stream` makes it."""

    def __init__(self, streams: Sequence[Stream], stack: contextlib.ExitStack) -> None:
        self._streams, self._stack = streams, stack

    def __next__(self) -> Batch:
        batches = [next(stream) for stream in self._streams]
        if len(batches) == 1:
            return batches[0]
        return Batch(*(None if rows[0] is None else np.concatenate(rows) for rows in zip(*batches, strict=True)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def example_ids(self) -> tuple[tuple[str, ...], ...]:
        """Of the last batch; see `Stream`."""
        return tuple(row for stream in self._streams for row in stream.example_ids)

    def get_state(self) -> dict[str, Any]:
        """Where this process's shares are between two batches, as json knows it."""
        return {_SHARES: [stream.get_state() for stream in self._streams]}

    def set_state(self, states: Sequence[dict[str, Any]]) -> None:
        """Goes on exactly where `get_state` was called, in however many processes.

        Args:
          states: of this process's shares, or of all (`merge_shard_states`).

        Raises:
          JanusError: see `Stream.set_state`.
        """
        numbered = {state["process"][0]: state for state in states}
        for stream in self._streams:
            stream.set_state(numbered[stream.number])
