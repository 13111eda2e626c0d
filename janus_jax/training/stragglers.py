"""Compares the time that the processes of a run take for a step, and warns of one that is slow.

The time of a process excludes the time in which it waits for the others before a step (`Limits.step_barrier`). Devices
wait for each other within a step, so a slow device shows in the times of all processes alike.
"""

import logging
from collections.abc import Mapping
from statistics import median

from janus_jax import coordination
from janus_jax.training.phases import Phases

_log = logging.getLogger(__name__)

_NAME = "step_seconds"
_RATIO = 1.3
_REPORTS = 3  # in which a process is slow before the warning, so that one slow batch is not reported


class Stragglers:
    """Publishes the step time of this process at each report. Process 0 compares the times.

    Args:
      phases: Seconds by phase of this process.
    """

    def __init__(self, phases: Phases) -> None:
        self._phases = phases
        self._last_step, self._last_seconds = 0, self._busy_seconds()
        self._slow, self._reports = -1, 0

    def start(self, step: int) -> None:
        """Starts the measurement after `step` steps."""
        self._last_step, self._last_seconds = step, self._busy_seconds()

    def report(self, step: int) -> dict[str, float]:
        """Returns metrics of the steps since the last call, in process 0 of several; otherwise nothing.

        Metrics: `step_seconds/median`, `step_seconds/slowest`, `step_seconds/ratio` (slowest to median) and
        `step_seconds/process` (index of the slowest).
        """
        if not coordination.is_joined() or step == self._last_step:
            return {}
        busy = self._busy_seconds()
        seconds = (busy - self._last_seconds) / (step - self._last_step)
        self._last_step, self._last_seconds = step, busy
        coordination.publish(_NAME, {"seconds": seconds})
        if coordination.process_index() != 0:
            return {}
        # Some values may be those of the last report, because no process waits for the others here.
        times = {index: value["seconds"] for index, value in coordination.published(_NAME).items()}
        metrics = compare(times)
        self._warn(step, metrics)
        return metrics

    def _warn(self, step: int, metrics: Mapping[str, float]) -> None:
        slow = int(metrics["step_seconds/process"]) if metrics["step_seconds/ratio"] > _RATIO else -1
        self._reports = self._reports + 1 if slow == self._slow else 1
        self._slow = slow
        if slow >= 0 and self._reports == _REPORTS:
            _log.warning(
                "step %s: process %d is slow: its steps take %.3g s, %.2f times the median of all processes.",
                f"{step:,}",
                slow,
                metrics["step_seconds/slowest"],
                metrics["step_seconds/ratio"],
            )

    def _busy_seconds(self) -> float:
        seconds = self._phases.seconds()
        return seconds["data"] + seconds["step"]


def compare(times: Mapping[int, float]) -> dict[str, float]:
    """Returns the metrics of `Stragglers.report` from the step time of each process."""
    slowest = max(times, key=lambda index: times[index])
    middle = median(times.values())
    return {
        "step_seconds/median": middle,
        "step_seconds/slowest": times[slowest],
        "step_seconds/ratio": times[slowest] / max(middle, 1e-9),
        "step_seconds/process": float(slowest),
    }
