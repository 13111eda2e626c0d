"""The callback interface of the trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jax.sharding import Mesh

from janus_jax.training.metric_writer import MetricWriter


def is_due(step: int, interval: int, last_step: int) -> bool:
    """Returns whether an action with this interval runs after this step. The last step is always due.

    Args:
      step: Steps taken so far.
      interval: Steps between two actions; 0 restricts the action to the last step.
    """
    return step == last_step or bool(interval and step % interval == 0)


@dataclass
class TrainingRun:
    """Progress of a run, as callbacks see it.

    Attributes:
      state: Train state after `step` steps. The next step donates its arrays: callbacks must not keep them.
      step: Steps taken so far.
      last_step: Step at which the run ends.
      writer: Destination of metrics, texts and images.
      mesh: Mesh that holds the state; None for a single device.
      metrics: Metrics of the last step, on their devices and possibly not computed yet.
      scores: Latest evaluation results. They are saved with each checkpoint, so that `keep.best_by` can name them.
    """

    state: Any
    step: int
    last_step: int
    writer: MetricWriter
    mesh: Mesh | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    def is_due(self, interval: int) -> bool:
        """Returns whether an action with this interval in steps runs now."""
        return is_due(self.step, interval, self.last_step)


class Callback:
    """Actions before and after training steps. Every process calls every method."""

    def on_start(self, run: TrainingRun) -> None:
        """Runs once, after the state is restored or initialized."""

    def before_step(self, step: int) -> None:
        """Runs before step number `step`, counted from 1."""

    def after_step(self, run: TrainingRun) -> None:
        """Runs after each step, before its checkpoint is saved."""

    def before_save(self, run: TrainingRun) -> None:
        """Runs before each checkpoint is saved."""

    def close(self) -> None:
        """Releases resources. Runs when training ends, including by an error."""


class PeriodicEvaluation(Callback):
    """Evaluates at multiples of an interval and at the last step.

    Args:
      interval: Steps between two evaluations; 0 evaluates at the last step only.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval

    def on_start(self, run: TrainingRun) -> None:
        """Evaluates if the run was already complete."""
        if run.step == run.last_step:
            self.evaluate_run(run)

    def after_step(self, run: TrainingRun) -> None:
        """Evaluates at multiples of the interval and at the last step."""
        if run.is_due(self._interval):
            self.evaluate_run(run)

    def evaluate_run(self, run: TrainingRun) -> None:
        """Evaluates the state of a run, and reports the scores with `report`."""
        raise NotImplementedError

    @staticmethod
    def report(run: TrainingRun, scores: Mapping[str, float], note: str = "") -> None:
        """Stores scores, writes them as metrics, and prints them on one line that ends with a note."""
        run.scores |= scores
        run.writer.scalars(run.step, scores)
        line = ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in scores.items())
        run.writer.message(f"step {run.step}: {line}{note}")
