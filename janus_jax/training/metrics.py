"""Reports the metrics of each step one step late, so that devices never wait for the host, and detects divergence."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from janus_jax.errors import Diverged
from janus_jax.storage import write_json
from janus_jax.training.incidents import Incidents
from janus_jax.training.metric_writer import MetricWriter, RateMeter

_SPEEDS = ("tokens/s", "images/s")
_DETAILS = ("mfu", "data_wait", "samples/s")


@dataclass(frozen=True)
class _Pending:
    step: int
    metrics: Mapping[str, Any]
    example_ids: Sequence[Sequence[str]]
    counts: Mapping[str, float]
    batch: Any


@dataclass(kw_only=True)
class StepMetrics:
    """Reports metrics and stops a run that diverges.

    Attributes:
      writer: Destination of the metrics.
      folder: Folder of the run. Example ids of batches with a non-finite gradient go to
        `not_finite/step_N.process_P.json`.
      is_due: Returns whether the metrics of a step are reported.
      learning_rate: Learning rate of each step, counted from 0; None omits it.
      max_skipped: Steps that may be skipped because of a non-finite gradient. One more stops the run.
      skipped: Steps skipped so far.
      peak_flops: FLOP/s of all devices together, the reference of `mfu`; None omits `mfu`.
      progress_metrics: Names of the first metrics of the progress line. Their parts, such as `loss/TASK`, follow.
      incidents: Records steps to replay; None for none.
      more: Returns further metrics for the report of a step.
      meter: Measures the rates since the last report.
      last: Metrics of the last finished step.
    """

    writer: MetricWriter
    folder: Path
    is_due: Callable[[int], bool]
    learning_rate: Callable[[int], Any] | None = None
    max_skipped: int = 0
    skipped: int = 0
    peak_flops: float | None = None
    progress_metrics: tuple[str, ...] = ("loss",)
    incidents: Incidents | None = None
    more: Callable[[int], Mapping[str, float]] = lambda step: {}
    meter: RateMeter = field(default_factory=RateMeter)
    last: dict[str, float] = field(default_factory=dict)
    _pending: _Pending | None = None

    def add(
        self,
        step: int,
        metrics: Mapping[str, Any],
        example_ids: Sequence[Sequence[str]],
        counts: Mapping[str, float],
        batch: Any = None,
    ) -> None:
        """Stores the metrics of a step that was started, and reports those of the step before.

        Args:
          step: Steps taken, including this one.
          metrics: Scalars on their devices, possibly not computed yet. `finite` is 0 if the update was skipped.
          example_ids: Ids of this process's examples, by sequence.
          counts: Work of the step, for example tokens, samples and FLOPs.
          batch: Batch of the step, kept until the next one for `incidents`.

        Raises:
          Diverged: The gradient of the step before is not finite, and no more steps may be skipped.
        """
        self.flush()
        self._pending = _Pending(step, metrics, example_ids, counts, batch)

    def flush(self) -> None:
        """Waits for the last step and reports its metrics. Raises the same errors as `add`."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        values = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
        self.meter.add(1, **pending.counts)
        loss = values.get("loss", values.get(self.progress_metrics[0]))
        if self.incidents and (incident := self.incidents.check(pending.step, values, loss, pending.batch)):
            self.writer.message(incident)
        extra: dict[str, float] = {}
        if "finite" in values:
            if not values.pop("finite"):
                self._skip(pending, values)
            extra["skipped"] = self.skipped
        elif not_finite := [name for name, value in values.items() if not math.isfinite(value)]:
            raise Diverged(
                f"At step {pending.step} {not_finite[0]} is {values[not_finite[0]]}; lower the learning rate and "
                f"restart from the last checkpoint."
            )
        # A term without supervised positions has no loss.
        empty = [name.removeprefix("tokens/") for name, value in values.items() if name[:7] == "tokens/" and not value]
        dropped = {f"{kind}/{term}" for term in empty for kind in ("tokens", "loss")}
        self.last = {name: value for name, value in values.items() if name not in dropped}
        if self.is_due(pending.step):
            rates = self.meter.rates()
            if self.peak_flops is not None:
                rates["mfu"] = rates["flops/s"] / self.peak_flops
            if self.learning_rate is not None:
                extra["learning_rate"] = float(self.learning_rate(pending.step - 1))
            self.writer.scalars(pending.step, self.last | extra | rates | dict(self.more(pending.step)))
            self.writer.progress(pending.step, self._shown(self.last | rates))

    def _shown(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the values of the progress line, most important first, because a narrow terminal cuts the line."""
        parts = {
            name.removeprefix(f"{head}/"): name
            for head in self.progress_metrics
            for name in values
            if name.startswith(f"{head}/")
        }
        names = {name: name for name in (*self.progress_metrics, *_SPEEDS)} | parts | {name: name for name in _DETAILS}
        return {shown: values[name] for shown, name in names.items() if name in values}

    def _skip(self, pending: _Pending, values: Mapping[str, float]) -> None:
        self.skipped += 1
        file = self.folder / "not_finite" / f"step_{pending.step}.process_{jax.process_index()}.json"
        metrics = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        write_json(file, {"step": pending.step, "metrics": metrics, "example_ids": pending.example_ids})
        if self.skipped > self.max_skipped:
            raise Diverged(
                f"At step {pending.step} the gradient is not finite (loss {values['loss']:.4g}), and "
                f"config.max_skipped is {self.max_skipped}. The example ids of the batch are in {file}. Inspect them, "
                f"lower optimizer.learning_rate or raise config.max_skipped, and repeat the command."
            )
        self.writer.message(f"step {pending.step}: the gradient is not finite, update skipped; see {file}")
