"""The watch for a collapse."""

import pytest

from janus_jax.errors import Diverged
from janus_jax.training.callbacks.base import TrainingRun
from janus_jax.training.rl.callbacks import CollapseWatch
from janus_jax.training.rl.config import Collapse


class Lines:
    """A metric writer that keeps its messages."""

    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


def watch(rewards, kls, **settings):
    """Returns the messages of a run with these rewards and KL divergences."""
    callback, writer = CollapseWatch(Collapse(**{"window": 2, **settings})), Lines()
    for step, (reward, kl) in enumerate(zip(rewards, kls, strict=True), 1):
        callback.after_step(TrainingRun(None, step, 100, writer, metrics={"reward": reward, "kl": kl}))
    return writer.lines


def test_falling_reward_and_rising_kl_are_reported_once():
    lines = watch([0.5, 0.8, 0.8, 0.8, 0.2, 0.2, 0.2], [0, 0.1, 0.1, 0.1, 0.5, 0.9, 0.9])
    assert len(lines) == 1
    assert "from 0.8 to 0.5 while the KL divergence has risen from 0.1 to 0.3" in lines[0]
    assert lines[0].startswith("step 5")


def test_other_courses_are_not_reported():
    assert not watch([0.1, 0.5, 0.8, 0.9], [0, 1, 2, 3])
    assert not watch([0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 0.5, 0.5])
    assert not watch([0.8, 0.8, 0.75, 0.75], [0, 0, 1, 1])


def test_a_collapse_can_end_the_run():
    with pytest.raises(Diverged, match="At step 4 the reward has fallen"):
        watch([0.8, 0.8, 0.8, 0.1], [0, 0, 0, 1], stop=True)
