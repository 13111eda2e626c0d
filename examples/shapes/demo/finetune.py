"""The demo's fine-tuning: new words beside a share of the old data, killed in the middle and gone on with."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.errors import ExitCode, JanusError


@dataclass(frozen=True)
class FineTuning:
    """How the fine-tuning went.

    Attributes:
      losses: lines of its metrics.jsonl.
      killed_at: the last step that was told of before it was killed.
      resumed_at: the step whose checkpoint it went on from.
      repeated: steps that were computed before and after, with the same losses to the last bit.
    """

    losses: Sequence[Mapping[str, float]]
    killed_at: int
    resumed_at: int
    repeated: int


@dataclass(frozen=True)
class FineTuneSpec:
    """What is taught, and how much of it.

    Attributes:
      words: a shape and a colour that the shipped model has never met.
      new_records, old_records: to fine-tune on, of each task: about the words, and about everything else.
      steps: of fine-tuning; None for the recipe's.
      killed_at: the step after which it is killed, with whatever it has not saved.
    """

    words: tuple[str, str] = ("heart", "pink")
    new_records: int = 6_000
    old_records: int = 3_000
    steps: int | None = None
    killed_at: int = 60


def teach(lesson: FineTuneSpec, out: Path, say: Callable[[str], None]) -> FineTuning:
    """Fine-tunes OUT/converted into OUT/finetuned, by way of OUT/data and OUT/run.

    Raises:
      JanusError: the training ended otherwise than done.
      RuntimeError: it went on with other losses than it had before it was killed.
    """
    from examples.shapes.source import prepare_shards
    from janus_jax.processing import Task

    data = out / "data"
    tokenizer = out / "converted"
    about = f"about={'+'.join(lesson.words)}"
    for name, world in (
        ("new", f"train:{lesson.new_records},seed=1,{about}"),
        ("old", f"train:{lesson.old_records},seed=2"),
    ):
        prepare_shards(data / f"{name}_understanding", world, Task.UNDERSTANDING)
        prepare_shards(data / f"{name}_generation", world, Task.GENERATION, tokenizer)
    command = [
        *(sys.executable, "-m", "launch.train", "--config", str(_config("shapes_finetune"))),
        *("--workdir", str(out / "run")),
        f"--config.stages.stage_1.initialisation.model={out / 'converted'}",
        *(
            f"--config.sources.{source}.directory={data / folder}"
            for source, folder in {
                "new_understanding": "new_understanding",
                "new_generation": "new_generation",
                "understanding": "old_understanding",
                "generation": "old_generation",
            }.items()
        ),
    ]
    if lesson.steps is not None:
        command.append(f"--config.stages.stage_1.steps={lesson.steps}")
        command.append(f"--config.stages.stage_1.optimizer.warmup_steps={lesson.steps // 10}")
    metrics = out / "run" / "stage_1" / "metrics.jsonl"
    first = _killed(command, metrics, lesson.killed_at)
    say("Killed. The same command again:")
    saved = _newest_step(out / "run" / "stage_1" / "checkpoints")
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise JanusError(f"fine-tuning ended with exit code {done.returncode}; what it wrote above tells why.")
    losses = _read(metrics)
    again = {line["step"]: line["loss"] for line in losses}
    repeated = [line for line in first if line["step"] > saved]
    if any(again[line["step"]] != line["loss"] for line in repeated):
        raise RuntimeError("A resumed run has other losses than the one that was killed.")
    _export(out)
    return FineTuning(losses, int(first[-1]["step"]), saved, len(repeated))


def _killed(command: Sequence[str], metrics: Path, at: int) -> list[dict[str, float]]:
    """Starts a run and kills it, without warning, when it has told of a step; what it had told by then."""
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            if (told := _read(metrics)) and told[-1]["step"] >= at:
                return told
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    if process.returncode != ExitCode.SUCCESS:
        raise JanusError(f"fine-tuning ended with exit code {process.returncode}; what it wrote above tells why.")
    return _read(metrics)


def _read(metrics: Path) -> list[dict[str, float]]:
    """The whole lines of a run's figures that tell of a loss."""
    if not metrics.exists():
        return []
    lines = metrics.read_text().splitlines(keepends=True)
    return [line for line in map(json.loads, (text for text in lines if text.endswith("\n"))) if "loss" in line]


def _newest_step(checkpoints: Path) -> int:
    return max((int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal()), default=0)


def _export(out: Path) -> None:

    from janus_jax.training.export import export

    export(out / "run", 1, out / "finetuned", "float32", progress=True)


def _config(name: str) -> Path:
    import configs

    return Path(configs.__path__[0]) / f"{name}.py"
