"""Records steps with a non-finite gradient or a loss spike, so that `janus-train --replay` can repeat them.

    WORKDIR/stage_N/incidents/step_S/incident.json    what happened, metrics of the step, config of the run
    WORKDIR/stage_N/incidents/step_S/process_P.npz    arrays of the batch of process P

The newest checkpoint before the step is kept. From it, replaying takes the steps up to the incident, whose batches and
random numbers depend on the seed and the data position only.
"""

import io
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import jax
import numpy as np

from janus_jax.storage import write_bytes, write_json
from janus_jax.training.config_dicts import check_values

FOLDER, FILE = "incidents", "incident.json"


@dataclass(frozen=True)
class IncidentOptions:
    """When a step is recorded as an incident.

    Attributes:
      z_score: Smallest distance of a loss from the mean of earlier losses, in standard deviations, that is a spike; 0
        for no spikes.
      window: Number of earlier losses. No spike is found before half of them are known.
      keep: Number of incidents to record in a stage; 0 records none.
    """

    z_score: float = 8.0
    window: int = 200
    keep: int = 4

    def __post_init__(self) -> None:
        check_values(self, "config.incidents", z_score=0, window=4, keep=0)


class Incidents:
    """Finds incidents and records them.

    Args:
      folder: Folder of the run.
      options: When a step is recorded.
      config: Config of the run as JSON values.
    """

    def __init__(self, folder: Path, options: IncidentOptions, config: Mapping[str, Any]) -> None:
        self._folder, self._options, self._config = folder / FOLDER, options, config
        self._losses: deque[float] = deque(maxlen=options.window)
        self.steps = incident_steps(folder)

    def check(self, step: int, metrics: Mapping[str, float], loss: float | None, batch: Any) -> str | None:
        """Records the step if it is an incident.

        Args:
          step: The step, counted from 1.
          metrics: Metrics of the step. `finite` is 0 if the gradient is not finite.
          loss: The loss that is watched for spikes; None for none.
          batch: Tree with the arrays of the batch.

        Returns:
          A sentence about the incident; None if there is none, or if enough incidents are recorded.

        Raises:
          StorageFull: The disk is full.
        """
        reason = self._reason(metrics, loss)
        if reason is None or len(self.steps) >= self._options.keep or step in self.steps:
            return None
        self.steps.append(step)
        folder = self._folder / f"step_{step}"
        write_bytes(folder / f"process_{jax.process_index()}.npz", _to_npz(batch))
        if jax.process_index() == 0:
            exact = {name: float(value).hex() for name, value in metrics.items()}
            content = {"step": step, "reason": reason, "metrics": exact, "processes": jax.process_count()}
            write_json(folder / FILE, content | {"devices": jax.device_count(), "config": self._config})
        return f"step {step:,}: {reason}; to repeat this step, run janus-train --replay={folder}"

    def _reason(self, metrics: Mapping[str, float], loss: float | None) -> str | None:
        if not metrics.get("finite", 1.0):
            return "the gradient is not finite"
        if loss is None:
            return None
        if not math.isfinite(loss):
            return "the loss is not finite"
        reason = None
        if self._options.z_score and len(self._losses) >= self._options.window // 2:
            mean, deviation = fmean(self._losses), max(pstdev(self._losses), 1e-12)
            if loss - mean > self._options.z_score * deviation:
                distance = (loss - mean) / deviation
                reason = f"the loss is {loss:.4g}, {distance:.1f} standard deviations above the mean of {mean:.4g}"
        self._losses.append(loss)
        return reason


def incident_steps(folder: Path) -> list[int]:
    """Returns the steps of the incidents in the folder of a run."""
    names = [path.name for path in (folder / FOLDER).glob("step_*")]
    return sorted(int(name.removeprefix("step_")) for name in names if name.removeprefix("step_").isdecimal())


def _to_npz(batch: Any) -> bytes:
    """Returns the arrays of a batch that are on this process's devices, as a compressed npz file."""
    leaves = [leaf for leaf in jax.tree.leaves(batch) if hasattr(leaf, "dtype")]
    file = io.BytesIO()
    np.savez_compressed(file, *map(local_array, leaves))
    return file.getvalue()


def local_array(leaf: Any) -> np.ndarray:
    """Returns the part of an array, sharded along its first axis, that is on this process's devices."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    parts = {shard.index[0].start or 0 if shard.index else 0: shard for shard in leaf.addressable_shards}
    return np.concatenate([np.atleast_1d(np.asarray(parts[start].data)) for start in sorted(parts)])
