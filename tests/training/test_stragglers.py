"""Step times of the processes are compared."""

import logging

from janus_jax import coordination
from janus_jax.training.phases import Phases
from janus_jax.training.stragglers import Stragglers, compare


def test_slowest_process_is_compared_with_the_median():
    assert compare({0: 1.0, 1: 1.2, 2: 3.0, 3: 1.0}) == {
        "step_seconds/median": 1.1,
        "step_seconds/slowest": 3.0,
        "step_seconds/ratio": 3.0 / 1.1,
        "step_seconds/process": 2.0,
    }


def test_process_that_stays_slow_is_warned_about_once(monkeypatch, caplog):
    slow = iter([2, 1, 2, 2, 2, 2, 2])
    monkeypatch.setattr(coordination, "is_joined", lambda: True)
    monkeypatch.setattr(coordination, "publish", lambda name, value: None)

    def published(name):
        index = next(slow)
        return {process: {"seconds": 1.4 if process == index else 1.0} for process in range(4)}

    monkeypatch.setattr(coordination, "published", published)
    stragglers = Stragglers(Phases())
    with caplog.at_level(logging.WARNING):
        for step in range(1, 8):
            assert stragglers.report(step)["step_seconds/ratio"] == 1.4
            assert bool(caplog.records) == (step >= 5)
    (record,) = caplog.records
    assert record.getMessage().startswith("step 5: process 2 is slow: its steps take 1.4 s, 1.40 times the median")
