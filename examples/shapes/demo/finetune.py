"""Fine-tuning in the demo: trains on new words and some old data, and kills and resumes the run."""

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
    """Course of a fine-tuning.

    Attributes:
      losses: Lines of its metrics.jsonl.
      killed_at: Last step reported before the kill.
      resumed_at: Step of the checkpoint from which the run resumed.
      repeated: Number of steps computed before the kill and again after it, with bitwise equal losses.
    """

    losses: Sequence[Mapping[str, float]]
    killed_at: int
    resumed_at: int
    repeated: int


@dataclass(frozen=True)
class FineTuneSpec:
    """Words and amounts of a fine-tuning.

    Attributes:
      words: A shape and a colour that the shipped model has never seen.
      new_records: Records per task about these words.
      old_records: Records per task about the words of the first training.
      steps: Steps; None uses the recipe's.
      killed_at: Step after which the run is killed, without a checkpoint.
    """

    words: tuple[str, str] = ("heart", "pink")
    new_records: int = 6_000
    old_records: int = 3_000
    steps: int | None = None
    killed_at: int = 60


def finetune(spec: FineTuneSpec, out: Path, say: Callable[[str], None]) -> FineTuning:
    """Fine-tunes OUT/converted into OUT/finetuned. The data is in OUT/data, the run in OUT/run.

    Raises:
      JanusError: The training ended early.
      RuntimeError: The resumed run computed other losses than the killed one.
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
    saved = _newest_step(run / "stage_1" / "checkpoints")
    if code := subprocess.run(command, check=False).returncode:
        raise _ended(code)
    losses = _read_losses(metrics)
    again = {line["step"]: line["loss"] for line in losses}
    repeated = [line for line in first if line["step"] > saved]
    if any(again[line["step"]] != line["loss"] for line in repeated):
        raise RuntimeError("The resumed run has other losses than the killed run.")
    _export(out)
    return FineTuning(losses, int(first[-1]["step"]), saved, len(repeated))


def _run_and_kill(command: Sequence[str], metrics: Path, step: int) -> list[dict[str, float]]:
    """Runs a command, kills it when it has reported a step, and returns the reported losses."""
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
    return JanusError(f"The fine-tuning ended with exit code {code}; its messages above give the reason.")


def _read_losses(metrics: Path) -> list[dict[str, float]]:
    """Returns the complete lines with a loss."""
    if not metrics.exists():
        return []
    lines = metrics.read_text().splitlines(keepends=True)
    return [line for line in map(json.loads, (text for text in lines if text.endswith("\n"))) if "loss" in line]


def _newest_step(checkpoints: Path) -> int:
    return max((int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal()), default=0)


def _export(out: Path) -> None:
    from janus_jax.training.export import export

    export(out / "run", 1, out / "finetuned", "float32", progress=True)
