"""Fine-tunes the model of the demo on new words and some old data, and kills and resumes the run."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.shapes.configs import finetune as config
from examples.shapes.source import prepare_shards
from janus_jax.errors import ExitCode, JanusError
from janus_jax.processing import Task


@dataclass(frozen=True)
class FineTuning:
    """Record of a fine-tuning run.

    Attributes:
      losses: Lines of metrics.jsonl that have a loss.
      killed_at: Last step reported before the run was killed.
      resumed_at: Step of the checkpoint from which the run resumed.
      repeated: Number of steps whose loss was computed both before the kill and after it, bitwise equal.
    """

    losses: Sequence[Mapping[str, float]]
    killed_at: int
    resumed_at: int
    repeated: int


@dataclass(frozen=True)
class FineTuneSpec:
    """Words, records and steps of a fine-tuning run.

    Attributes:
      words: A shape and a color that the shipped model has never seen.
      new_records: Records per task about these words.
      old_records: Records per task about the words of the first training.
      steps: Training steps. None uses those of the recipe.
      killed_at: Step at which the run is killed. No checkpoint is saved at the kill.
    """

    words: tuple[str, str] = ("heart", "pink")
    new_records: int = 6_000
    old_records: int = 3_000
    steps: int | None = None
    killed_at: int = 60


def finetune(spec: FineTuneSpec, out: Path, say: Callable[[str], None]) -> FineTuning:
    """Fine-tunes the model in OUT/converted and writes the result to OUT/finetuned.

    The data are in OUT/data and the run is in OUT/run.

    Raises:
      JanusError: The training failed.
      RuntimeError: The losses of the resumed run differ from those of the killed run.
    """
    data, run = out / "data", out / "run"
    for name, records in (
        ("new", f"train:{spec.new_records},seed=1,about={'+'.join(spec.words)}"),
        ("old", f"train:{spec.old_records},seed=2"),
    ):
        prepare_shards(data / f"{name}_understanding", records, Task.UNDERSTANDING)
        prepare_shards(data / f"{name}_generation", records, Task.GENERATION, out / "converted")
    folders = {f"new_{task}": f"new_{task}" for task in ("understanding", "generation")}
    folders |= {task: f"old_{task}" for task in ("understanding", "generation")}
    command = [
        *(sys.executable, "-m", "launch.train", "--config", config.__file__, "--workdir", str(run)),
        f"--config.stages.stage_1.initialisation.model={out / 'converted'}",
        *(f"--config.sources.{source}.directory={data / folder}" for source, folder in folders.items()),
    ]
    if spec.steps is not None:
        command.append(f"--config.stages.stage_1.steps={spec.steps}")
        command.append(f"--config.stages.stage_1.optimizer.warmup_steps={spec.steps // 10}")
    metrics = run / "stage_1" / "metrics.jsonl"
    first = _run_and_kill(command, metrics, spec.killed_at)
    say("Killed. The same command again:")
    checkpoints = (run / "stage_1" / "checkpoints").iterdir()
    saved = max((int(path.name) for path in checkpoints if path.name.isdecimal()), default=0)
    if code := subprocess.run(command, check=False).returncode:
        raise _ended(code)
    losses = _read_losses(metrics)
    again = {line["step"]: line["loss"] for line in losses}
    repeated = [line for line in first if line["step"] > saved]
    if any(again[line["step"]] != line["loss"] for line in repeated):
        raise RuntimeError("The losses of the resumed run differ from those of the killed run.")
    from janus_jax.training.export import export

    export(run, 1, out / "finetuned", "float32", progress=True)
    return FineTuning(losses, int(first[-1]["step"]), saved, len(repeated))


def _run_and_kill(command: Sequence[str], metrics: Path, step: int) -> list[dict[str, float]]:
    """Runs a command, kills it when it has reported this step, and returns the metrics lines with a loss."""
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            if (losses := _read_losses(metrics)) and losses[-1]["step"] >= step:
                return losses
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    if process.returncode != ExitCode.SUCCESS:
        raise _ended(process.returncode)
    return _read_losses(metrics)


def _ended(code: int) -> JanusError:
    return JanusError(f"The fine-tuning failed with exit code {code}; its messages above give the reason.")


def _read_losses(metrics: Path) -> list[dict[str, float]]:
    """Returns the lines with a loss. An incomplete last line is ignored."""
    if not metrics.exists():
        return []
    lines = metrics.read_text().splitlines(keepends=True)
    return [line for line in map(json.loads, (text for text in lines if text.endswith("\n"))) if "loss" in line]
