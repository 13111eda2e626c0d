"""The small Janus that comes with the project: imported, asked, made to draw, scored, and taught something new.

    python -m examples.shapes.demo.run

1 imports the shipped PyTorch checkpoint, and holds the conversion against the file, bit by bit;
2 answers questions about pictures it has never seen, and draws prompts, on all devices of the host;
3 scores answers and drawings on combinations that training never showed by themselves, beside what guessing gives;
4 fine-tunes it on a shape and a colour that it has never met, kills the run in the middle, goes on, and scores again;
5 has the small JanusFlow that comes with the project draw too, along a flow in place of ids;
6 writes a page that shows it all, OUT/index.html, and the figures, OUT/report.json.
"""

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tqdm
from absl import flags

from examples.shapes.demo.finetune import FineTuneSpec, teach
from examples.shapes.demo.scores import DemoScores, report
from janus_jax.commands import cli
from janus_jax.errors import JanusError
from janus_jax.storage import output_folder

if TYPE_CHECKING:
    from examples.shapes.evaluation import Generation
    from janus_jax import Pretrained

_OUT = flags.DEFINE_string("out", "runs/demo", "folder for everything it makes; what an earlier demo left is replaced")

_MOST_DEVICES = 8


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
      asked, drawn: questions a topic and prompts a category, of held-out combinations.
      new_asked, new_drawn: of those about the new words.
      lesson: what it is taught.
      flowed: prompts a category that the JanusFlow draws.
    """

    asked: int = 60
    drawn: int = 40
    new_asked: int = 40
    new_drawn: int = 20
    lesson: FineTuneSpec = field(default_factory=FineTuneSpec)
    flowed: int = 4


def main(_: Sequence[str]) -> None:
    """Runs all steps."""
    import jax

    from examples.shapes.models import FLOW_SHAPES, SHAPES

    # On a host without an accelerator its cores are the devices.
    jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, _MOST_DEVICES))
    cli.enable_compilation_cache()
    with output_folder(Path(_OUT.value)) as out:
        run(out, SHAPES, FLOW_SHAPES, Plan())


def run(out: Path, released: Path, flow: Path, plan: Plan) -> dict[str, float]:
    """All steps; the figures of the report.

    Args:
      released: the Janus, as a PyTorch checkpoint.
      flow: the JanusFlow.
    """
    import jax

    import janus_jax
    from janus_jax.sharding import make_mesh

    began = time.monotonic()
    for earlier in ("converted", "finetuned", "data", "run", "before", "after", "flowed"):
        shutil.rmtree(out / earlier, ignore_errors=True)

    _step(1, f"Import {released.name}, a PyTorch checkpoint")
    _import(released, out / "converted")
    model = janus_jax.load(out / "converted", "float32", make_mesh(data=-1, fsdp=1))
    _say(f"{sum(leaf.size for leaf in jax.tree.leaves(model.params)):,} parameters on {_devices(model)}.")

    _step(2, "Ask it and let it draw: combinations that training never showed by themselves")
    before = _scored(model, out / "before", plan)
    _show(before)

    _step(3, "Its scores, beside guessing")
    _table({"now": before.figures()})

    _step(4, f"Teach it what it has never met: {' and '.join(plan.lesson.words)}")
    tuning = teach(plan.lesson, out, _say)
    _say(
        f"Killed after step {tuning.killed_at}, gone on from step {tuning.resumed_at}: {tuning.repeated} losses were "
        f"computed twice, alike to the last bit."
    )
    model = janus_jax.load(out / "finetuned", "float32", make_mesh(data=-1, fsdp=1))
    after = _scored(model, out / "after", plan)
    _table({"before": before.figures(), "after": after.figures()})

    _step(5, f"Draw another way: {flow.name}, along a flow")
    flowed = _flowed(flow, out / "flowed", plan)

    figures = report(before, after, (time.monotonic() - began) / 60)
    (out / "report.json").write_text(json.dumps(figures, indent=2) + "\n")
    _step(6, "Show it all")
    from examples.shapes.demo.page import write_page

    write_page(out / "index.html", before, after, flowed, tuning, figures, plan.lesson.words)
    _say(f"{out / 'index.html'} is the page, {out / 'report.json'} the figures, {out / 'finetuned'} the model.")
    print(f"\nDone in {figures['minutes']:.1f} minutes.\n")
    return figures


def _import(released: Path, converted: Path) -> None:

    from checkpoints_convert import convert

    back = converted.with_name("back")
    shutil.rmtree(back, ignore_errors=True)
    _say(str(convert(released, converted, progress=True)))
    convert(converted, back, "released", progress=True)
    _say(f"Exported again, {compare(released, back)} tensors are the same to the last bit.")
    shutil.rmtree(back)


def compare(first: Path, second: Path) -> int:
    """Holds the weights of two checkpoint folders against each other; the number of tensors they hold.

    Raises:
      JanusError: a tensor of the first is not the same in the second.
    """
    from checkpoints_convert.tensor_files import open_tensors

    before, after = open_tensors(first), open_tensors(second)
    if before.keys() != after.keys():
        raise JanusError(
            f"{first} and {second} differ in tensors: {min(before.keys() ^ after.keys())} is in one alone."
        )
    for name, array in tqdm.tqdm(before.items(), unit=" tensors", desc="comparing"):
        if array.dtype != after[name].dtype or _bits(array) != _bits(after[name]):
            raise JanusError(f"{name} of {first} is another in {second}; one of the two is damaged.")
    return len(before)


def _bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _devices(model: "Pretrained") -> str:
    assert model.mesh is not None
    devices = list(model.mesh.devices.flat)
    return f"{len(devices)} x {devices[0].device_kind}"


def _scored(model: "Pretrained", folder: Path, plan: Plan) -> DemoScores:
    """Scores a model; its answers and drawings stay in a folder."""
    from examples.shapes.dataset import DEFAULT
    from examples.shapes.evaluation import ShapesProtocol, evaluate_generation, evaluate_understanding
    from janus_jax.progress import count_bar

    old = ShapesProtocol(per_topic=plan.asked, per_category=plan.drawn)
    new = ShapesProtocol(
        per_topic=plan.new_asked,
        per_category=plan.new_drawn,
        vocabulary=DEFAULT.with_extras(*plan.lesson.words),
        about=frozenset(plan.lesson.words),
    )
    understanding, generation = [], []
    for name, protocol in (("old", old), ("new", new)):
        with count_bar(f"   answering, {name} words") as bar:
            answered = evaluate_understanding(model, folder / f"{name}_answers", protocol, report=bar)
        with count_bar(f"   drawing, {name} words", "pictures") as bar:
            drawn = evaluate_generation(model, folder / f"{name}_drawings", protocol, report=bar)
        understanding.append(answered)
        generation.append(drawn)
    return DemoScores(understanding[0], generation[0], understanding[1], generation[1])


def _show(scored: DemoScores) -> None:
    answered, drawn = scored.understanding, scored.generation
    for index in range(0, len(answered.questions), max(len(answered.questions) // 5, 1)):
        question = answered.questions[index]
        mark = "right" if answered.right[index] else f"wrong, it is {question.answer}"
        _say(f"{question.text}  {answered.answers[index]}  ({mark})")
    for index in range(0, len(drawn.prompts), max(len(drawn.prompts) // 6, 1)):
        verdict = drawn.verdicts[index]
        _say(f"{drawn.prompts[index].text}: {verdict.reason or 'as asked for'}")


def _flowed(flow: Path, folder: Path, plan: Plan) -> "Generation":
    """What the JanusFlow draws, all prompts in one batch."""
    import janus_jax
    from examples.shapes.dataset import Category
    from examples.shapes.evaluation import ShapesProtocol, evaluate_generation
    from janus_jax.progress import count_bar
    from janus_jax.sharding import make_mesh

    model = janus_jax.load(flow, "float32", make_mesh(data=-1, fsdp=1))
    protocol = ShapesProtocol(per_category=plan.flowed, batch_size=len(Category) * plan.flowed)
    with count_bar("   drawing", "pictures") as bar:
        drawn = evaluate_generation(model, folder, protocol, report=bar)
    right = sum(verdict.correct for verdict in drawn.verdicts)
    _say(f"{right} of {len(drawn.verdicts)} prompts are drawn right.")
    return drawn


def _table(columns: Mapping[str, Mapping[str, float]]) -> None:
    figures = next(iter(columns.values()))
    chances = {name.removeprefix("chance."): value for name, value in figures.items() if name.startswith("chance.")}
    print(" " * 31 + "".join(f"{title:>9}" for title in (*columns, "chance")))
    for name, chance in chances.items():
        values = (*(column[name] for column in columns.values()), chance)
        print(f"   {name:28}" + "".join(f"{value:9.2f}" for value in values))


def _step(number: int, text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{number}. {text}{plain}", flush=True)


def _say(text: str) -> None:
    for line in text.splitlines():
        print(textwrap.fill(line, 112, initial_indent="   ", subsequent_indent="   "), flush=True)


if __name__ == "__main__":
    cli.run(main)
