"""A step's figures, read one step late, so that the devices never wait for the host; and those that are no numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from janus_jax.errors import Diverged
from janus_jax.storage import write_json
from janus_jax.training.metric_writer import MetricWriter, RateMeter
from janus_jax.training.train_step import Metrics


@dataclass(frozen=True)
class _Pending:
    step: int
    metrics: Metrics
    sample_ids: Sequence[Sequence[str]]
    counts: Mapping[str, float]


class StepMetrics:
    """Tells of the steps, and stops a run whose gradients are no numbers.

    Args:
      reports: where they are told.
      folder: where sample ids of batches go whose gradient is not finite: `not_finite/step_N.process_P.json`.
      is_due: whether a step's figures are told.
      rate: the learning rate of a step, counted from 0.
      max_skipped: steps that may have been left out before one more stops the run.
      skipped: that were, before.
      peak_flops: FLOP/s of all devices together, which `mfu` is the share of; None where nobody knows.

    Attributes:
      meter: of what was done since figures were last told.
      skipped: steps that were left out so far.
      last: figures as they were last told.
    """

    def __init__(
        self,
        reports: MetricWriter,
        folder: Path,
        is_due: Callable[[int], bool],
        rate: Callable[[int], Any],
        *,
        max_skipped: int = 0,
        skipped: int = 0,
        peak_flops: float | None = None,
    ) -> None:
        self.meter = RateMeter()
        self.skipped = skipped
        self.last: dict[str, float] = {}
        self._reports, self._folder, self._is_due, self._rate = reports, folder / "not_finite", is_due, rate
        self._max_skipped, self._peak_flops = max_skipped, peak_flops
        self._pending: _Pending | None = None

    def add(
        self, step: int, metrics: Metrics, sample_ids: Sequence[Sequence[str]], counts: Mapping[str, float]
    ) -> None:
        """Takes the figures of a step that was begun, and tells of the one before it.

        Args:
          step: how many were taken, this one included.
          metrics: see `step.train_step`; on their devices, and maybe not computed yet.
          sample_ids: of this process's rows.
          counts: what the step has done: tokens, samples, flops.

        Raises:
          Diverged: the step before had a gradient that is not finite, and no more may be left out.
        """
        self.settle()
        self._pending = _Pending(step, metrics, sample_ids, counts)

    def settle(self) -> None:
        """Waits for the last step, and tells of it; as `add`."""
        one, self._pending = self._pending, None
        if one is None:
            return
        told = {name: float(value) for name, value in jax.device_get(one.metrics).items()}
        self.meter.add(1, **one.counts)
        if not told.pop("finite"):
            self._skip(one, told)
        # A task without a place has no loss.
        self.last = {name: value for name, value in told.items() if told.get(name.replace("loss/", "places/"), 1)}
        if self._is_due(one.step):
            rates = self.meter.rates()
            if self._peak_flops is not None:
                rates["mfu"] = rates["flops/s"] / self._peak_flops
            also = {"learning_rate": float(self._rate(one.step - 1)), "skipped": self.skipped}
            self._reports.scalars(one.step, self.last | also | rates)
            shown = {name: value for name, value in self.last.items() if name.startswith("loss")}
            self._reports.progress(one.step, shown | {name: rates[name] for name in _SHOWN if name in rates})

    def _skip(self, one: _Pending, told: Mapping[str, float]) -> None:
        self.skipped += 1
        file = self._folder / f"step_{one.step}.process_{jax.process_index()}.json"
        metrics = {name: value if math.isfinite(value) else str(value) for name, value in told.items()}
        write_json(file, {"step": one.step, "metrics": metrics, "sample_ids": one.sample_ids})
        if self.skipped > self._max_skipped:
            raise Diverged(
                f"At step {one.step} the gradient is not finite (loss {told['loss']:.4g}), and config.max_skipped "
                f"allows {self._max_skipped} such steps; the batch's sample ids are in {file}. Look at them, lower "
                f"optimizer.learning_rate or raise config.max_skipped, and start again from the last checkpoint."
            )
        self._reports.message(f"step {one.step}: the gradient is not finite, nothing was learnt; see {file}")


_SHOWN = ("tokens/s", "samples/s", "mfu", "data_wait")
