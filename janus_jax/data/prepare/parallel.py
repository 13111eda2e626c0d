"""Preparing in several processes: progress while they work, a clear end when one dies, none that outlives us."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from janus_jax.data.prepare.shard_writer import LEAST_ENTRIES, ShardWriter
from janus_jax.errors import JanusError

_SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class PrepareProgress:
    """How far a run is.

    Attributes:
      entries: read so far, in earlier runs too.
      total: of all parts; None where a source does not know before it reads.
      rejected: of the entries.
      parts: finished.
    """

    entries: int
    total: int | None
    rejected: int
    parts: int


Report = Callable[[PrepareProgress], None]


def write_parts(
    preparation: ShardWriter,
    indices: Sequence[int],
    workers: int,
    max_rejected: float,
    report: Report = lambda progress: None,
) -> None:
    """Makes the shards of these parts.

    Args:
      preparation: the job.
      indices: of parts that are unfinished.
      workers: processes; where one would do, this one works.
      max_rejected: share of rejected entries, from `LEAST_ENTRIES` entries on, at which it stops.
      report: told of the progress now and then.

    Raises:
      JanusError: too much is rejected, the input or output fails, or a worker dies.
    """
    before = preparation.finished()
    sizes = [part.size for part in preparation.parts]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    parts = len(preparation.parts) - len(preparation.unfinished())
    entries, rejected = before.entries, before.num_rejected

    def follow(tally: Tally, finished: int) -> None:
        nonlocal entries, rejected
        entries, rejected = before.entries + tally.entries, before.num_rejected + tally.rejected
        report(PrepareProgress(entries, total, rejected, parts + finished))
        if entries >= LEAST_ENTRIES and rejected > max_rejected * entries:
            raise _Stopped

    try:
        follow(Tally(0, 0), 0)
        if min(workers, len(indices)) > 1:
            _write_in_processes(preparation, indices, min(workers, len(indices)), follow)
        else:
            _write_here(preparation, indices, follow)
    except _Stopped:
        preparation.check_share(entries, rejected, max_rejected)


class Tally(NamedTuple):
    """Counts of one run."""

    entries: int
    rejected: int


class _Stopped(Exception):
    """The run ends: what a process is at is given up."""


Follow = Callable[[Tally, int], None]
"""Told what was read and how many parts are finished; may raise to end the run."""


def _write_here(preparation: ShardWriter, indices: Sequence[int], follow: Follow) -> None:
    tally, done = Tally(0, 0), 0

    def on_entry(accepted: bool) -> None:
        nonlocal tally
        tally = Tally(tally.entries + 1, tally.rejected + (not accepted))
        if tally.entries % 64 == 0:
            follow(tally, done)

    for done, index in enumerate(indices):
        preparation.run_part(index, on_entry)
        follow(tally, done + 1)


class _Shared:
    """What the processes tell each other: memory with one writer a place, and no lock that a killed one could hold."""

    def __init__(self, context: Any, parts: int) -> None:
        self.entries = context.RawArray("q", parts)
        self.rejected = context.RawArray("q", parts)
        self.stop = context.RawValue("b", 0)

    def tally(self) -> Tally:
        return Tally(int(np.sum(self.entries)), int(np.sum(self.rejected)))


_preparation: ShardWriter
_shared: _Shared


def _write_in_processes(preparation: ShardWriter, indices: Sequence[int], workers: int, follow: Follow) -> None:
    # A forked process would inherit the locks of threads that it lacks.
    context = multiprocessing.get_context("spawn")
    shared = _Shared(context, len(preparation.parts))
    pool = ProcessPoolExecutor(workers, context, _start_worker, (preparation, shared))
    try:
        futures = {pool.submit(_run_part, index) for index in indices}
        pending = futures
        while pending:
            done, pending = wait(pending, _SECONDS_BETWEEN_REPORTS, FIRST_COMPLETED)
            for future in done:
                future.result()
            follow(shared.tally(), len(futures) - len(pending))
    except BrokenProcessPool as error:
        unfinished = [preparation.parts[index].name for index in preparation.unfinished()[: 2 * workers]]
        raise JanusError(
            f"A worker process was killed or ran out of memory, at one of {', '.join(unfinished)}; give the same "
            f"command again, with fewer --workers if memory was short: finished shards stay."
        ) from error
    finally:
        shared.stop.value = 1
        pool.shutdown(cancel_futures=True)


def _start_worker(preparation: ShardWriter, shared: _Shared) -> None:
    global _preparation, _shared
    _preparation, _shared = preparation, shared
    # Ctrl-C reaches every process of the terminal: the first one decides, and tells the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker whose parent is killed would wait for its next task for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_part(index: int) -> None:
    shared = _shared
    shared.entries[index] = shared.rejected[index] = 0

    def on_entry(accepted: bool) -> None:
        if shared.stop.value:
            raise _Stopped
        shared.entries[index] += 1
        shared.rejected[index] += not accepted

    with contextlib.suppress(_Stopped):
        _preparation.run_part(index, on_entry)
