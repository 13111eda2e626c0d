"""Writes shards in several processes, with progress and an early stop.

A worker that dies raises an error, and no worker outlives its parent.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus_jax.data.prepare.shard_writer import MIN_ENTRIES, ShardWriter
from janus_jax.errors import JanusError

_SECONDS_BETWEEN_REPORTS = 0.5
_ENTRIES_BETWEEN_REPORTS = 64


@dataclass(frozen=True)
class PrepareProgress:
    """Progress of a data set, including earlier runs.

    Attributes:
      entries: Entries read so far.
      total: Entries of all parts; None if the source does not know.
      rejected: Rejected entries.
      shards: Finished shards.
    """

    entries: int
    total: int | None
    rejected: int
    shards: int


_Update = Callable[[int, int, int], None]
"""Called with the entries, rejected entries and finished shards of this run. Raises `_Stop` to end it."""


class _Stop(Exception):
    """Ends a run early. Arguments: entries and rejected entries."""


def write_shards(
    writer: ShardWriter,
    indices: Sequence[int],
    *,
    workers: int,
    max_rejected: float,
    report: Callable[[PrepareProgress], None] = lambda progress: None,
) -> None:
    """Writes shards.

    Args:
      writer: Writer of the data set.
      indices: Indices of the shards.
      workers: Number of processes; one worker means this process.
      max_rejected: Share of rejected entries at which to stop, after the first `MIN_ENTRIES` entries.
      report: Called regularly with the progress.

    Raises:
      JanusError, StorageFull: Too many entries are rejected, the input or output fails, or a worker dies.
    """
    before = writer.finished_stats()
    sizes = [part.size for part in writer.parts]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    finished = len(writer.parts) - len(writer.unfinished())

    def update(entries: int, rejected: int, shards: int) -> None:
        entries, rejected = before.entries + entries, before.num_rejected + rejected
        report(PrepareProgress(entries, total, rejected, finished + shards))
        if entries >= MIN_ENTRIES and rejected > max_rejected * entries:
            raise _Stop(entries, rejected)

    try:
        update(0, 0, 0)
        if min(workers, len(indices)) > 1:
            _write_in_processes(writer, indices, min(workers, len(indices)), update)
        else:
            _write_here(writer, indices, update)
    except _Stop as stop:
        entries, rejected = stop.args
        writer.check_rejected(entries, rejected, max_rejected)


def _write_here(writer: ShardWriter, indices: Sequence[int], update: _Update) -> None:
    entries = rejected = shards = 0

    def on_entry(accepted: bool) -> None:
        nonlocal entries, rejected
        entries, rejected = entries + 1, rejected + (not accepted)
        if entries % _ENTRIES_BETWEEN_REPORTS == 0:
            update(entries, rejected, shards)

    for index in indices:
        writer.write(index, on_entry)
        shards += 1
        update(entries, rejected, shards)


class _SharedCounts:
    """Counts in shared memory. Each element has one writer, so a killed worker holds no lock."""

    def __init__(self, context: Any, shards: int) -> None:
        self.entries = context.RawArray("q", shards)
        self.rejected = context.RawArray("q", shards)
        self.stop = context.RawValue("b", 0)


# Set in worker processes only.
_writer: ShardWriter
_counts: _SharedCounts


def _write_in_processes(writer: ShardWriter, indices: Sequence[int], workers: int, update: _Update) -> None:
    # Not forked, because a forked process inherits locks of threads that it does not have.
    context = multiprocessing.get_context("spawn")
    counts = _SharedCounts(context, len(writer.parts))
    pool = ProcessPoolExecutor(workers, context, _start_worker, (writer, counts))
    try:
        futures = {pool.submit(_write_shard, index) for index in indices}
        pending = futures
        while pending:
            done, pending = wait(pending, _SECONDS_BETWEEN_REPORTS, FIRST_COMPLETED)
            for future in done:
                future.result()
            update(int(np.sum(counts.entries)), int(np.sum(counts.rejected)), len(futures) - len(pending))
    except BrokenProcessPool as error:
        unfinished = [writer.parts[index].name for index in writer.unfinished()[: 2 * workers]]
        raise JanusError(
            f"A worker process was killed or ran out of memory while it read one of {', '.join(unfinished)}; run the "
            f"same command again, with fewer --workers if memory was short. Finished shards are kept."
        ) from error
    finally:
        counts.stop.value = 1
        pool.shutdown(cancel_futures=True)


def _start_worker(writer: ShardWriter, counts: _SharedCounts) -> None:
    global _writer, _counts
    _writer, _counts = writer, counts
    # Ctrl-C reaches every process of the terminal. The parent handles it and stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker of a killed parent would wait for its next task forever.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_shard(index: int) -> None:
    counts = _counts
    counts.entries[index] = counts.rejected[index] = 0

    def on_entry(accepted: bool) -> None:
        if counts.stop.value:
            raise _Stop
        counts.entries[index] += 1
        counts.rejected[index] += not accepted

    with contextlib.suppress(_Stop):
        _writer.write(index, on_entry)
