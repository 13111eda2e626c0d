"""Trackers that fail or block do not affect the run."""

import threading
import time
from pathlib import Path

import pytest

from janus_jax.training.trackers import TrackedRun, Tracker, TrackerThreads, threads


@pytest.fixture
def messages():
    return []


def run_with(tracker, messages, calls=(), seconds=20.0):
    """Runs one tracker and returns the seconds that its calls and its end took."""
    begin = time.monotonic()
    found = TrackerThreads({"mine": tracker}, TrackedRun("id", Path("run"), {}, 0, messages.append, files=Path("run")))
    for call in calls:
        found.put(call)
    found.finish(True, seconds)
    return time.monotonic() - begin


def scalars(step):
    return lambda tracker: tracker.scalars(step, {"loss": 1.0})


def test_calls_arrive_in_order_in_one_thread(messages):
    seen = []

    class Mine(Tracker):
        def start(self, run):
            seen.append(("start", run.id, threading.current_thread().name))

        def scalars(self, step, values):
            seen.append((step, values["loss"], threading.current_thread().name))

        def finish(self, succeeded):
            seen.append(("finish", succeeded, threading.current_thread().name))

    run_with(Mine, messages, [scalars(1), scalars(2)])
    name = "tracker mine"
    assert seen == [("start", "id", name), (1, 1.0, name), (2, 1.0, name), ("finish", True, name)]
    assert messages == []


def test_a_tracker_that_cannot_start_gives_one_warning_and_no_calls(messages):
    class Mine(Tracker):
        def start(self, run):
            raise SystemExit("no\nkey")

        def scalars(self, step, values):
            messages.append("called")

    run_with(Mine, messages, [scalars(1), scalars(2)])
    assert messages == ["Warning: the tracker mine cannot start (SystemExit: no key); the run continues without it."]


def test_a_tracker_that_fails_gives_one_warning_and_keeps_receiving(messages):
    seen = []

    class Mine(Tracker):
        def scalars(self, step, values):
            if step < 3:
                raise ConnectionError("unreachable")
            seen.append(step)

        def finish(self, succeeded):
            raise ValueError("never shown")

    run_with(Mine, messages, map(scalars, (1, 2, 3)))
    assert seen == [3]
    (warning,) = messages
    assert "mine has failed (ConnectionError: unreachable); the run continues" in warning


@pytest.mark.parametrize("where", ["start", "scalars", "finish"])
def test_a_tracker_that_hangs_neither_slows_nor_holds_the_run(messages, monkeypatch, where):
    monkeypatch.setattr(threads, "_MAX_WAITING", 5)
    release = threading.Event()
    mine = type("Mine", (Tracker,), {where: lambda self, *arguments: release.wait(60)})
    try:
        assert run_with(mine, messages, map(scalars, range(20)), seconds=0.3) < 5
    finally:
        release.set()
    (warning,) = messages
    assert "is 5 calls behind" in warning or "has not finished after 0 s; the run ends without it" in warning
