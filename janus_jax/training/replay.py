"""Repeats a recorded step (`training.incidents`) and compares its metrics with the recorded ones."""

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from janus_jax.errors import JanusError
from janus_jax.training.checkpoint_files import absolute_path, read_state, saved_steps
from janus_jax.training.incidents import FILE, FOLDER, local_array
from janus_jax.training.trainer import DataStart, TrainingTask


@dataclass(frozen=True)
class Incident:
    """A recorded incident.

    Attributes:
      folder: Its folder, `WORKDIR/stage_N/incidents/step_S`.
      step: The step, counted from 1.
      reason: What happened.
      metrics: Metrics of the step.
      processes: Number of processes of the run.
      devices: Number of devices of the run.
      config: Config of the run as JSON values.
    """

    folder: Path
    step: int
    reason: str
    metrics: Mapping[str, float]
    processes: int
    devices: int
    config: Mapping[str, Any]

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return self.folder.parent.parent

    def checkpoint(self) -> int | None:
        """Returns the step of the newest checkpoint before the incident; None if there was none yet."""
        try:
            steps = saved_steps(self.run_folder / "checkpoints")
        except JanusError:
            return None
        return max((step for step in steps if step < self.step), default=None)


def read_incident(folder: Path) -> Incident:
    """Reads a recorded incident.

    Raises:
      JanusError: The folder has no incident.
    """
    try:
        content = json.loads((folder / FILE).read_text())
        metrics = {name: float.fromhex(value) for name, value in content["metrics"].items()}
        names = ("step", "reason", "processes", "devices", "config")
        return Incident(folder, metrics=metrics, **{name: content[name] for name in names})
    except (OSError, ValueError, KeyError) as error:
        raise JanusError(
            f"{folder} has no readable {FILE}; give a folder such as WORKDIR/stage_1/{FOLDER}/step_1200."
        ) from error


def replay(task: TrainingTask[Any, Any], incident: Incident, show: Callable[[str], None] = print) -> bool:
    """Repeats the steps from the newest checkpoint before an incident up to its step, and reports the metrics.

    Args:
      task: The task of the run.
      incident: The incident.
      show: Prints a line; called in process 0 only.

    Returns:
      Whether batch and metrics are bit-identical to the recorded ones. They can be if the kind and number of devices
      and processes are those of the run, because the order of sums depends on them.

    Raises:
      JanusError: The checkpoint belongs to another model, or the data have changed.
      DamagedCheckpointError: The checkpoint is damaged.
    """
    show = show if jax.process_index() == 0 else lambda line: None
    saved, start, state = incident.checkpoint(), DataStart(), None
    if saved is not None:
        content, state = read_state(
            absolute_path(incident.run_folder / "checkpoints") / str(saved), task.abstract_state
        )
        positions = [one["data"] for one in content["data"]]
        start = DataStart(saved, content["data"][0]["order"], positions)
    show(f"step {incident.step:,}: {incident.reason}")
    had, has = (incident.devices, incident.processes), (jax.device_count(), jax.process_count())
    if had != has:
        show("the run had {} devices of {} processes, now there are {} of {}: roundings may differ".format(*had, *has))
    with task.open_data(start) as data:
        if state is None:
            state = task.initial_state(data)
        metrics: Mapping[str, Any] = {}
        batch = None
        for step in range(start.step + 1, incident.step + 1):
            batch = next(data)
            state, metrics = task.step(state, batch)
            show(f"step {step:,}: {', '.join(_shown(metrics))}")
        is_equal = _has_recorded_batch(incident, batch)
        show("the batch is that of the incident" if is_equal else "the batch differs from that of the incident")
    found = {name: float(value) for name, value in jax.device_get(metrics).items()}
    for name, recorded in incident.metrics.items():
        is_same = found.get(name, math.nan).hex() == recorded.hex()
        is_equal &= is_same
        show(f"{name}: {found.get(name)!r}, recorded {recorded!r}{'' if is_same else ', differs'}")
    return is_equal


def _shown(metrics: Mapping[str, Any]) -> list[str]:
    values = {name: float(value) for name, value in metrics.items() if "/" not in name}
    return [f"{name} {value:.6g}" for name, value in values.items()]


def _has_recorded_batch(incident: Incident, batch: Any) -> bool:
    """Returns whether the batch is the recorded one: that of this process, or in one process those of all, in order."""
    leaves = [local_array(leaf) for leaf in jax.tree.leaves(batch) if hasattr(leaf, "dtype")]
    indices = range(incident.processes) if jax.process_count() == 1 else [jax.process_index()]
    files = [np.load(io.BytesIO((incident.folder / f"process_{index}.npz").read_bytes())) for index in indices]
    recorded = [np.concatenate([file[name] for file in files]) for name in files[0].files]
    return len(leaves) == len(recorded) and all(map(np.array_equal, leaves, recorded))
