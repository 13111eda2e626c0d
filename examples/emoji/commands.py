"""The commands of the emoji example, in order, and a function that runs those that have not completed."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from examples.emoji.dataset import PACKAGE, VERSION
from janus_jax.errors import JanusError

_SMOKE = {
    "tokenizer": "--config.steps=2 --config.batch_size=4 --config.optimizer.warmup_steps=1 --config.pca_images=16 "
    "--config.codebook.kmeans_images=16",
    "encoder": "--config.steps=2 --config.batch_size=4 --config.optimizer.warmup_steps=1",
    "janus": "".join(
        f"--config.stages.stage_{n}.steps=2 --config.stages.stage_{n}.batch_size=2 "
        f"--config.stages.stage_{n}.optimizer.warmup_steps=1 "
        for n in (1, 2, 3)
    ),
}


class Step(NamedTuple):
    """A command, and a path that exists once it has completed."""

    name: str
    command: str
    result: Path


def steps(workdir: Path, budget: str, package: Path | None = None) -> Iterator[Step]:
    """Yields all commands in order.

    Args:
      workdir: Folder of all results.
      budget: "smoke", "60min" or "gpu".
      package: File of the npm package. None fetches it.
    """
    data, prepared, janus = workdir / "data", workdir / "prepared", workdir / "janus"
    if package is None:
        package = workdir / f"{PACKAGE}-{VERSION}.tgz"
        yield Step("package", f"npm pack {PACKAGE}@{VERSION} --pack-destination {workdir}", package)
    tables = f"python -m examples.emoji.tables {package} {data}"
    yield Step("tables", tables, data / "text" / "tokenizer.json")

    def prepare(name: str, source: str, table: str, more: str = "") -> Step:
        images = f"--images {data / 'pictures'} --background white"
        command = f"janus-prepare --source {source} --input {data / table} {images}{more}"
        output = prepared / name
        return Step(f"prepare {name}", f"{command} --output {output}", output / "dataset_info.json")

    def train(name: str, config: str, folder: Path, result: Path, more: str) -> Step:
        suffix = "_gpu" if budget == "gpu" else ""
        command = f"janus-train --config examples/emoji/configs/{config}{suffix}.py --workdir {folder} {more}"
        return Step(name, f"{command} {_SMOKE[config] if budget == 'smoke' else ''}".strip(), result)

    yield prepare("pictures", "captions", "train.jsonl")
    yield prepare("held_out", "captions", "held_out.jsonl")
    yield prepare("questions", "conversations", "questions.jsonl")
    yield prepare("chat", "conversations --task text", "chat.jsonl")

    pictures = f"--config.data.directories=\"('{prepared}/pictures',)\""
    held_out = f"--config.data.eval_directories=\"('{prepared}/held_out',)\""
    vq, encoder = workdir / "tokenizer", workdir / "und_encoder"
    yield train("image tokenizer", "tokenizer", vq, vq / "tokenizer" / "config.json", f"{pictures} {held_out}")
    text = f"--config.tokenizer={data}/text"
    result = encoder / "two_towers" / "recipe.json"
    yield train("understanding encoder", "encoder", encoder, result, f"{text} {pictures} {held_out}")
    yield prepare("encoded", "captions", "train.jsonl", f" --text_field name --tokenizer {vq}/tokenizer")

    sources = f"--config.sources.understanding.directory={prepared}/questions "
    sources += f"--config.sources.text.directory={prepared}/chat"
    first = (
        f"{text} --config.stages.stage_1.initialisation.und_encoder={encoder}/und_encoder "
        f"--config.stages.stage_1.initialisation.gen_encoder={vq}/tokenizer "
    )
    later = f" --config.sources.generation.directory={prepared}/encoded"
    for stage in (1, 2, 3):
        more = f"--config.stage={stage} {first if stage == 1 else ''}{sources}{later if stage > 1 else ''}"
        yield train(f"stage {stage}", "janus", janus, workdir / "done" / f"stage_{stage}", more)
    model = workdir / "model"
    yield Step("export", f"janus-export --workdir {janus} --out {model}", model / "config.json")
    for name in ("understanding", "generation"):
        benchmark = "emoji" if name == "understanding" else "emoji_generation"
        out = workdir / "evaluation" / name
        command = f"janus-evaluate --model {model} --dtype float32 --data {workdir} --out {out} --batch_size 50"
        command += f" --benchmark examples.emoji.{name}_benchmark:{benchmark}"
        command += " --background white" if name == "understanding" else ""
        yield Step(f"evaluate {name}", command + (" --limit 4" if budget == "smoke" else ""), out / "results.json")
    figures = f"python -m examples.emoji.figures {workdir}"
    yield Step("figures", figures, workdir / "figures" / "reconstructions.png")


def run(workdir: Path, budget: str, package: Path | None = None) -> None:
    """Runs all commands that have not completed, and writes report.json.

    Raises:
      JanusError: A command failed.
    """
    (workdir / "done").mkdir(parents=True, exist_ok=True)
    minutes_file = workdir / "minutes.json"
    minutes = json.loads(minutes_file.read_text()) if minutes_file.exists() else {}
    for step in steps(workdir, budget, package):
        if step.result.exists():
            continue
        print(f"\n$ {step.command}", flush=True)
        start = time.monotonic()
        try:
            code = subprocess.run(_arguments(step.command), check=False).returncode
        except FileNotFoundError as error:
            raise JanusError(
                f"{error.filename} is not installed; install it, or give the package with --package."
            ) from None
        # An interrupted command has used time, too.
        minutes[step.name] = minutes.get(step.name, 0.0) + (time.monotonic() - start) / 60
        minutes_file.write_text(json.dumps(minutes, indent=2) + "\n")
        if code:
            raise JanusError(f"{step.name} failed (exit code {code}); its messages are above. Repeat to continue.")
        if step.result.parent == workdir / "done":
            step.result.touch()
    scores = {
        name: json.loads((workdir / "evaluation" / name / "results.json").read_text())["scores"]
        for name in ("understanding", "generation")
    }
    report = {"minutes": minutes, "minutes in all": sum(minutes.values()), **scores}
    (workdir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def _arguments(command: str) -> list[str]:
    """Returns the arguments of a command, with the programs of the Python environment that runs this module."""
    program, *arguments = shlex.split(command)
    if program == "python":
        return [sys.executable, *arguments]
    if program.startswith("janus-"):
        return [sys.executable, "-m", f"launch.{program.removeprefix('janus-')}", *arguments]
    return [program, *arguments]
