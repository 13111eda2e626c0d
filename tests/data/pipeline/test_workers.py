"""A data worker that ends, by any cause and at any moment, ends the run with a message and never blocks it."""

import collections
import itertools
import multiprocessing
import os
import random
import signal
import sys
import time

import grain
import numpy as np
import pytest

from janus_jax.data.pipeline.loading import iterate
from janus_jax.data.pipeline.workers import WorkerWatch
from janus_jax.errors import JanusError


class Source:
    """Returns the result of a function for each index."""

    def __init__(self, function):
        self._function = function

    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        return self._function(index)


class Reader:
    """Reads a function in worker processes, as streams do."""

    def __init__(self, function, workers=1):
        self.before = set(multiprocessing.active_children())
        self._iterator = iterate(grain.MapDataset.source(Source(function)), workers=workers, prefetch=8)
        self._watch = WorkerWatch()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._watch.close(self._iterator.close)

    def __iter__(self):
        return self

    def __next__(self):
        return self.call(self._iterator.__next__)

    def call(self, function):
        return self._watch.call(function)

    @property
    def workers(self):
        return sorted(set(multiprocessing.active_children()) - self.before, key=lambda worker: worker.pid)


def identity(index):
    return index


def megabytes(index):
    return np.full(16 << 20, index % 256, np.uint8), "text " * 3000


def fail(index):
    raise JanusError("It is not there.") if index == 0 else KeyError("k")


def report(index):
    """Returns values of several types, with what the worker knows."""
    jax = sys.modules.get("jax")
    return {
        "array": np.full((3, 1 << index), index),
        "platforms": jax.config.jax_platforms if jax else "cpu",
        "device": jax.devices()[0].platform if jax and index == 5 else None,
        "ignored": [
            signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        ],
    }


def sleep(index):
    time.sleep(3600 if index == 16 else 0)
    return index


@pytest.mark.nightly
def test_workers_use_no_accelerator_and_ignore_preemption_notices():
    with Reader(report, workers=2) as reader:
        reports = [next(reader) for _ in range(6)]
        assert [one["platforms"] for one in reports] == ["cpu"] * 6
        assert reports[5]["device"] == "cpu"
        assert all(all(one["ignored"]) for one in reports)
        for index, one in enumerate(reports):
            np.testing.assert_array_equal(one["array"], np.full((3, 1 << index), index))
        for worker in reader.workers:
            os.kill(worker.pid, signal.SIGTERM)
        assert [next(reader)["platforms"] for _ in range(10)] == ["cpu"] * 10
        workers = reader.workers
    assert len(workers) == 2
    for worker in workers:
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers)


def test_an_error_in_a_worker_is_raised_in_the_caller():
    with Reader(fail) as reader, pytest.raises(JanusError, match="It is not there"):
        next(reader)


def kill_at(moment, function, workers=2):
    """Kills a worker after a time and returns the seconds until the reader raises."""
    with Reader(function, workers) as reader:
        next(reader)
        victim = random.Random(moment).choice(reader.workers)
        time.sleep(moment)
        os.kill(victim.pid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(JanusError, match=rf"data worker \(process {victim.pid}\) has ended by signal 9 \(SIGKILL"):
            collections.deque(itertools.islice(reader, 1000), 0)
        return time.monotonic() - begin


@pytest.mark.slow
def test_a_worker_killed_during_a_transfer_raises_within_seconds():
    """grain passes 16 MB per example."""
    assert kill_at(0.05, megabytes) < 15


@pytest.mark.nightly
def test_a_worker_killed_at_twenty_random_moments_raises():
    rng = random.Random(0)
    for number in range(20):
        assert kill_at(rng.uniform(0, 0.3), (megabytes, identity)[number % 2]) < 30


def test_a_worker_killed_while_it_works_raises():
    with Reader(sleep) as reader:
        assert [next(reader) for _ in range(16)] == list(range(16))
        reader.workers[0].kill()
        with pytest.raises(JanusError, match="SIGKILL"):
            next(reader)


@pytest.mark.nightly
def test_a_reader_that_grain_blocks_raises_and_closes():
    """Stands for a worker that is killed while it holds a lock of grain."""
    with Reader(identity) as reader:
        next(reader)
        (worker,) = reader.workers
        worker.kill()
        begin = time.monotonic()
        with pytest.raises(JanusError, match="SIGKILL"):
            reader.call(lambda: time.sleep(14))
        assert time.monotonic() - begin < 20
