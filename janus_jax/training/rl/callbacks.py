"""Callbacks of reinforcement learning: pictures of rollouts, held-out reward, and the watch for a collapse.

WORKDIR/stage_N/samples/step_N/groups.png    best and worst image of some groups, one row per prompt
"""

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from janus_jax.errors import Diverged
from janus_jax.rewards import RewardValues
from janus_jax.storage import writing
from janus_jax.training.callbacks.base import Callback, TrainingRun
from janus_jax.training.rl.config import Collapse

_GROUPS = 8


class _Rollouts(Protocol):
    @property
    def last(self) -> Any: ...

    def held_out_rewards(self, state: Any) -> RewardValues: ...


class RolloutPictures(Callback):
    """Shows the best and the worst image of the first groups of a step, with prompts and rewards.

    Args:
      rollouts: The step, which has the last rollout.
      group_size: Images per group.
      interval: Steps between pictures; 0 for the last step only.
      folder: Folder of the pictures.
    """

    def __init__(self, rollouts: _Rollouts, group_size: int, interval: int, folder: Path) -> None:
        self._rollouts, self._group_size, self._interval, self._folder = rollouts, group_size, interval, folder

    def after_step(self, run: TrainingRun) -> None:
        """Writes the pictures. Only the images of the first process are shown."""
        if not run.is_due(self._interval) or jax.process_index():
            return
        rollout = self._rollouts.last
        total, images = rollout.rewards.total, dict(zip(rollout.rows.tolist(), rollout.images, strict=True))
        shown: list[UInt8[np.ndarray, "H W 3"]] = []
        captions: list[str] = []
        for number, prompt in enumerate(rollout.prompts[:_GROUPS]):
            rows = range(number * self._group_size, (number + 1) * self._group_size)
            ranked = sorted((row for row in rows if row in images), key=lambda row: -total[row])
            for word, row in zip(("best", "worst"), (ranked[0], ranked[-1]) if ranked else (), strict=False):
                shown.append(images[row])
                captions.append(f"{word}, reward {total[row]:.3g}: {prompt.text}")
        if not shown:
            return
        run.writer.images(run.step, "rollouts", shown, captions)
        rows_of_sheet = [np.concatenate(shown[i : i + 2], axis=1) for i in range(0, len(shown), 2)]
        folder = self._folder / f"step_{run.step}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "groups.png").open("wb") as file:
                Image.fromarray(np.concatenate(rows_of_sheet)).save(file, "PNG")
            (folder / "groups.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")


class HeldOutReward(Callback):
    """Computes the reward of one image for each held-out prompt, with the same random keys each time.

    Metrics: `held_out/reward`, and `held_out/reward/CURVE` for each reward.

    Args:
      rollouts: The step, which samples and scores images.
      interval: Steps between evaluations; 0 for the last step only.
    """

    def __init__(self, rollouts: _Rollouts, interval: int) -> None:
        self._rollouts, self._interval = rollouts, interval

    def on_start(self, run: TrainingRun) -> None:
        """Evaluates the initial model."""
        if not run.step:
            self._evaluate(run)

    def after_step(self, run: TrainingRun) -> None:
        """Evaluates the model at each interval and after the last step."""
        if run.is_due(self._interval):
            self._evaluate(run)

    def _evaluate(self, run: TrainingRun) -> None:
        rewards = self._rollouts.held_out_rewards(run.state)
        values = {"held_out/reward": float(rewards.total.mean())}
        values |= {f"held_out/reward/{name}": float(value.mean()) for name, value in rewards.by_source.items()}
        run.scores.update(values)
        run.writer.scalars(run.step, values)
        run.writer.message(f"step {run.step:,}: held-out reward {values['held_out/reward']:.4g}")


class CollapseWatch(Callback):
    """Warns, or ends the run, when the reward falls while the KL divergence rises.

    Both are means over windows of steps. A resumed run starts with empty windows.

    Args:
      settings: Window, threshold and action.
    """

    def __init__(self, settings: Collapse) -> None:
        self._settings, self._best, self._warned = settings, (-np.inf, np.inf), False
        self._recent: deque[tuple[float, float]] = deque(maxlen=settings.window)

    def after_step(self, run: TrainingRun) -> None:
        """Adds the metrics of the step.

        Raises:
          Diverged: The run has collapsed, and the settings ask for its end.
        """
        if message := self.add(run.metrics):
            if self._settings.stop:
                raise Diverged(f"At step {run.step} {message}")
            run.writer.message(f"step {run.step:,}: {message}")

    def add(self, metrics: Mapping[str, Any]) -> str | None:
        """Adds the metrics of a step. Returns a message the first time that the run has collapsed."""
        self._recent.append((float(metrics["reward"]), float(metrics["kl"])))
        if len(self._recent) < self._settings.window:
            return None
        reward, kl = (fmean(values) for values in zip(*self._recent, strict=True))
        best, kl_at_best = self._best
        if reward > best:
            self._best, self._warned = (reward, kl), False
        has_collapsed = reward < best - self._settings.drop * max(abs(best), 1e-6) and kl > kl_at_best
        if not has_collapsed or self._warned:
            return None
        self._warned = True
        return (
            f"the reward has fallen from {best:.4g} to {reward:.4g} while the KL divergence has risen from "
            f"{kl_at_best:.4g} to {kl:.4g} (means of {self._settings.window} steps); restart from an earlier "
            f"checkpoint with a lower learning rate or a larger rl.loss.beta."
        )
