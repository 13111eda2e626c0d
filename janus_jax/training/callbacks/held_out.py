"""Loss on held-out data."""

import functools
import operator
from collections.abc import Iterable
from itertools import islice

from janus_jax.data.pipeline.stream import Stream, shard_states
from janus_jax.training.callbacks.base import Callback, TrainingRun
from janus_jax.training.train_step import CompiledStep, put_batch


class HeldOutLoss(Callback):
    """Computes the mean loss over the same held-out batches each time.

    Metrics: `held_out/loss`, and `held_out/loss/TERM` for each loss term with supervised positions.

    Args:
      data: Held-out batches. The callback closes them.
      step: Compiled evaluation step (`train_step.make_evaluation_step`).
      batches: Number of batches.
      interval: Steps between evaluations; 0 evaluates after the last step only.
      tasks: Tasks of the data. A message names those without targets in the batches.
    """

    def __init__(
        self, data: Stream, step: CompiledStep, batches: int, interval: int, *, tasks: Iterable[str] = ()
    ) -> None:
        self._data, self._step, self._batches, self._interval = data, step, batches, interval
        self._tasks = tuple(tasks)
        self._start = shard_states([data.get_state()])

    def after_step(self, run: TrainingRun) -> None:
        """Computes and reports the loss at each interval and after the last step."""
        if not run.is_due(self._interval):
            return
        self._data.set_state(self._start)
        batches = islice(self._data, self._batches)
        sums = functools.reduce(operator.add, (self._step(run.state, put_batch(b, run.mesh)) for b in batches))
        terms = {
            name: float(mean)
            for name, mean, count in zip(sums.terms.names, sums.term_means, sums.counts, strict=True)
            if count
        }
        losses = {f"held_out/loss/{name}": loss for name, loss in terms.items()}
        losses["held_out/loss"] = float(sums.loss)
        run.scores.update(losses)
        run.writer.scalars(run.step, losses)
        parts = ", ".join(f"{name} {loss:.4g}" for name, loss in terms.items())
        run.writer.message(f"step {run.step:,}: held-out loss {losses['held_out/loss']:.4g} ({parts})")
        if missing := [task for task in self._tasks if task not in terms]:
            run.writer.message(
                f"step {run.step:,}: no held-out loss of {', '.join(missing)}, because the {self._batches} batches "
                f"have no such targets; raise config.intervals.evaluate_batches."
            )

    def close(self) -> None:
        """Closes the data."""
        self._data.close()
