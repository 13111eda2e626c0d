"""The loop of the small trainings whose data are arrays in memory: one device, and a run that goes on where it stopped.

WORKDIR/checkpoints/    see `train.checkpoints`; WORKDIR/metrics.jsonl and WORKDIR/tensorboard/ have the figures
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from janus_jax.errors import Preempted
from janus_jax.training.checkpointing import Checkpoints
from janus_jax.training.config_dicts import to_json
from janus_jax.training.metric_writer import MetricWriter, RateMeter
from janus_jax.training.preemption import Preemption


@dataclass(frozen=True)
class Run:
    """What every such training states.

    Attributes:
      steps: of it.
      batch_size: rows of a step.
      seed: of parameters and batches.
      save_every, report_every: in steps.
    """

    steps: int
    batch_size: int
    seed: int = 0
    save_every: int = 500
    report_every: int = 50


def train_in_memory(
    recipe: Run,
    init: Callable[[], Any],
    step: Callable[..., tuple[Any, dict[str, Any]]],
    arrays: tuple[np.ndarray, ...],
    workdir: Path,
) -> tuple[Any, dict[str, float]]:
    """Trains to the last step, from the newest checkpoint in the workdir if there is one.

    Args:
      init: gives the state before the first step, whose `step` counts them.
      step: the compiled step: a state, then the same rows of each of `arrays`, to a state and figures. It may take the
        old state's memory.
      arrays: as long as each other, and a batch at least.

    Returns:
      The state after the last step, and the last figures.

    Raises:
      Preempted: the machine is taken away; all is saved.
    """
    place = SingleDeviceSharding(jax.devices()[0])
    abstract: Any = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), jax.eval_shape(init)
    )
    with Checkpoints(workdir / "checkpoints") as checkpoints, Preemption() as preemption:
        restored = checkpoints.restore(abstract)
        state: Any = jax.jit(init)() if restored is None else restored.state
        done, meter, figures = int(state.step), RateMeter(), dict[str, float]()
        with MetricWriter(workdir, recipe.steps, done) as reports:
            while done < recipe.steps:
                # A batch follows from the seed and the step alone, so nothing of the data needs to be saved.
                rng = np.random.default_rng((recipe.seed, done))
                chosen = rng.choice(len(arrays[0]), recipe.batch_size, False)
                state, scalars = step(state, *(array[chosen] for array in arrays))
                done += 1
                meter.add(images=recipe.batch_size)
                leaving = preemption.reached(done)
                if done % recipe.report_every == 0 or done == recipe.steps:
                    figures = {name: float(value) for name, value in scalars.items()}
                    reports.scalars(done, figures | meter.rates())
                    reports.progress(done, figures)
                if leaving or done % recipe.save_every == 0 or done == recipe.steps:
                    checkpoints.save(done, state, {}, to_json(recipe))
                if leaving:
                    checkpoints.wait()
                    raise Preempted(f"Told to go at step {done}; all is saved. Give the same command again.")
        return state, figures
