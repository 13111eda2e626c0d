"""Loss on held-out data, of each task."""

import io
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from janus_jax.training.callbacks import held_out
from janus_jax.training.callbacks.base import TrainingRun
from janus_jax.training.console import Console
from janus_jax.training.losses.tokens import LossSums
from janus_jax.training.metric_writer import MetricWriter


class Batches:
    """An endless stream of the same batch."""

    def __next__(self):
        return "batch"

    def __iter__(self):
        return self

    def get_state(self):
        return {"shards": []}

    def set_state(self, states):
        pass


@pytest.mark.parametrize(
    ("losses", "counts", "expected", "messages"),
    [
        (
            (8.0, 12.0, 20.0),
            (4.0, 4.0, 2.0),
            {"loss": 4.0, "loss/text": 2.0, "loss/understanding": 3.0, "loss/generation": 10.0},
            ["step 5: held-out loss 4 (text 2, understanding 3, generation 10)"],
        ),
        (
            (0.0, 12.0, 20.0),
            (0.0, 4.0, 4.0),
            {"loss": 4.0, "loss/understanding": 3.0, "loss/generation": 5.0},
            [
                "step 5: held-out loss 4 (understanding 3, generation 5)",
                "step 5: no held-out loss of text, because the 2 batches have no such targets; raise "
                "config.intervals.evaluate_batches.",
            ],
        ),
    ],
)
def test_each_task_has_a_loss(monkeypatch, losses, counts, expected, messages):
    monkeypatch.setattr(held_out, "put_batch", lambda batch, mesh: batch)
    stream = io.StringIO()
    run = TrainingRun(SimpleNamespace(), 5, 5, MetricWriter(None, Console(5, stream=stream)))
    sums = LossSums(jnp.array(losses), jnp.array(counts))
    tasks = ("generation", "text", "understanding")
    held_out.HeldOutLoss(Batches(), lambda state, batch: sums, 2, 0, tasks=tasks).after_step(run)
    assert run.scores == pytest.approx({f"held_out/{name}": loss for name, loss in expected.items()})
    assert stream.getvalue().splitlines() == messages
