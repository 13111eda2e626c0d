"""Writes shards in several processes, reports progress, and stops early if too many entries are rejected.

If a worker process dies, the parent raises an error. If the parent dies, its workers exit.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from janus_jax.data.pipeline.workers import safe_path
from janus_jax.data.prepare.shard_writer import MIN_ENTRIES, ShardWriter
from janus_jax.errors import JanusError
from janus_jax.progress import Report

_SECONDS_BETWEEN_REPORTS = 0.5
_ENTRIES_BETWEEN_REPORTS = 64


_Update = Callable[[int, int, int], None]
"""Function of the numbers of entries, rejected entries and finished shards in this run. May raise `_Stop`."""


class _Stop(Exception):
    """Too many entries are rejected. In the parent process, the arguments are the entries and the rejected entries."""


def write_shards(
    writer: ShardWriter,
    indices: Sequence[int],
    *,
    workers: int,
    max_rejected: float,
    report: Report = lambda done, total=None, **counts: None,
) -> None:
    """Writes shards.

    Args:
      writer: Writer of the dataset.
      indices: Indices of the shards.
      workers: Number of processes; 1 writes in this process.
      max_rejected: Largest share of entries that may be rejected, checked from the first `MIN_ENTRIES` entries on.
      report: Called regularly with the number of entries (finished shards of earlier runs included), the number of
        entries of all parts (None if unknown), `rejected` entries and finished `shards`.

    Raises:
      JanusError, StorageFull: Too many entries are rejected, the input or output fails, or a worker dies.
    """
    before = writer.finished_stats()
    sizes = [part.size for part in writer.parts]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    finished = len(writer.finished())

    def update(entries: int, rejected: int, shards: int) -> None:
        entries, rejected = before.entries + entries, before.num_rejected + rejected
        report(entries, total, rejected=rejected, shards=finished + shards)
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
    """Counts of entries by shard, in shared memory. Only one worker writes each element, so no locks are needed."""

    def __init__(self, context: Any, shards: int) -> None:
        self.entries = context.RawArray("q", shards)
        self.rejected = context.RawArray("q", shards)
        self.stop = context.RawValue("b", 0)


# Set by `_start_worker`, in worker processes only.
_writer: ShardWriter
_counts: _SharedCounts


def _write_in_processes(writer: ShardWriter, indices: Sequence[int], workers: int, update: _Update) -> None:
    # Not forked, because a forked process inherits locks that no thread of it will release.
    context = multiprocessing.get_context("spawn")
    counts = _SharedCounts(context, len(writer.parts))
    pool = ProcessPoolExecutor(workers, context, _start_worker, (writer, counts))
    try:
        with safe_path():
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
    # Ctrl-C sends SIGINT to the workers, too. Only the parent handles the signal; it stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without this thread, the worker of a killed parent would wait for its next task forever.
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
