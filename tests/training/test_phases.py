"""Seconds by phase, and the time without progress."""

import time

import pytest

from janus_jax.training.phases import Phases


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_every_second_counts_for_the_innermost_phase(clock):
    phases = Phases()
    clock[0] = 1
    with phases("step"):
        clock[0] = 3
        with phases("data"):
            clock[0] = 7
            assert (phases.moment().phase, phases.moment().seconds) == ("data", 4)
            assert phases.seconds()["data"] == 4
        clock[0] = 8
    clock[0] = 16
    spent = phases.seconds()
    assert {name: seconds for name, seconds in spent.items() if seconds} == {"start": 9, "step": 3, "data": 4}
    assert sum(spent.values()) == 16


def test_time_in_which_the_process_was_stopped_has_no_limit(clock):
    phases = Phases()
    with phases("step"):
        clock[0] = 3
        phases.begin_step(1)
        clock[0] = 100
        phases.skip(95)
        assert (phases.moment().seconds, phases.moment().stalled) == (5, 2)
        assert phases.seconds()["step"] == 100


def test_steps_and_phases_with_their_own_limit_are_progress(clock):
    phases = Phases()
    with phases("step"):
        phases.begin_step(5)
        clock[0] = 10
        with phases("data"):
            clock[0] = 12
        assert phases.moment().stalled == 12
        phases.begin_step(6)
        clock[0] = 15
        with phases("save"):
            clock[0] = 40
        clock[0] = 41
        assert (phases.moment().step, phases.moment().stalled) == (6, 1)
