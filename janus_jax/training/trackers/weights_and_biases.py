"""Weights & Biases (https://wandb.ai), with the package wandb.

Its environment variables apply: WANDB_PROJECT (default `janus_jax`), WANDB_ENTITY, WANDB_NAME, WANDB_MODE,
WANDB_API_KEY. A run in a local folder writes its files to `FOLDER/wandb`; `wandb sync` uploads those of an offline run.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from janus_jax.extras import require
from janus_jax.training.trackers.base import TrackedRun, Tracker, register_tracker

_FINISH_SECONDS = 50  # Shorter than the time that the run waits, so that wandb's own handler at exit has nothing to do.


@register_tracker("wandb")
class WeightsAndBiases(Tracker):
    """Sends a run to Weights & Biases. The x axis of all charts is the metric `step`.

    wandb's own step counter is not used: it ignores the values of steps that a resumed run repeats.
    """

    @classmethod
    def check(cls, field: str) -> None:
        """Checks that wandb is installed."""
        require(field, "wandb")

    def start(self, run: TrackedRun) -> None:
        """Starts the run, or continues the one with the same id.

        Raises:
          RuntimeError: The machine has no API key.
        """
        import wandb  # Imported late: it takes two seconds.

        self._wandb: Any = wandb
        settings = wandb.Settings(
            silent=True,
            console=os.environ.get("WANDB_CONSOLE", "off"),
            finish_timeout=_FINISH_SECONDS,
        )
        mode = wandb.setup(settings=settings).settings.mode
        # Without a key wandb would ask for one on the terminal of the run.
        if mode in ("online", "run", "shared") and not wandb.login(prompt=False):
            raise RuntimeError("there is no API key; run `wandb login`, or set WANDB_MODE=offline")
        is_local = "://" not in str(run.folder)
        self._run = wandb.init(
            id=run.id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "janus_jax"),
            name=os.environ.get("WANDB_NAME", "/".join(run.folder.parts[-2:])),
            dir=os.environ.get("WANDB_DIR", str(run.folder) if is_local else None),
            settings=settings,
        )
        self._run.config.update({**run.config, "versions": dict(run.versions)}, allow_val_change=True)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        where = f"offline; wandb sync {self._run.settings.sync_dir} uploads it" if self._run.offline else self._run.url
        run.message(f"wandb: run {run.id} ({where})")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs scalars."""
        self._log(step, values)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Logs each text as a table with one cell."""
        self._log(step, {name: self._wandb.Table(columns=["text"], data=[[text]]) for name, text in texts.items()})

    def images(
        self, step: int, name: str, images: Sequence[UInt8[np.ndarray, "H W 3"]], captions: Sequence[str]
    ) -> None:
        """Logs images with their captions."""
        known: Sequence[str | None] = captions or [None] * len(images)
        captioned = [self._wandb.Image(image, caption=text) for image, text in zip(images, known, strict=True)]
        self._log(step, {name: captioned})

    def answers(self, step: int, name: str, answers: Sequence[tuple[str, str]]) -> None:
        """Logs a table of questions and answers."""
        self._log(step, {name: self._wandb.Table(columns=["question", "answer"], data=list(map(list, answers)))})

    def finish(self, succeeded: bool) -> None:
        """Uploads the rest. The run is marked as failed if it has not succeeded."""
        self._run.finish(exit_code=0 if succeeded else 1)

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **values})
