"""Runs the demo of this example: conversion, answers, images, edits, scores and fine-tuning of the small Janus.

    python -m examples.shapes.demo

1. Imports the shipped PyTorch checkpoint and verifies the conversion bitwise.
2. Answers questions about new images and generates images, on all devices of the host.
3. Scores answers and images on combinations that training never showed alone, and prints the chance level.
4. Edits images, and holds conversations in which the model generates an image and changes it or answers about it.
5. Fine-tunes on a shape and a color that the model has never seen, kills and resumes the run, and scores again.
6. Generates images with the small JanusFlow, which uses a flow instead of image tokens.
7. Writes a page with all results, OUT/index.html, and the scores, OUT/report.json.
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

from absl import flags

from examples.shapes.demo.finetune import FineTuneSpec, finetune
from examples.shapes.demo.scores import ContextScores, DemoScores, report
from janus_jax.commands import cli
from janus_jax.errors import JanusError
from janus_jax.extras import require
from janus_jax.progress import progress_bar
from janus_jax.storage import output_folder

if TYPE_CHECKING:
    from examples.shapes.evaluation import GenerationResult
    from janus_jax import Pretrained

_OUT = flags.DEFINE_string("out", "runs/demo", "Output folder. Results of an earlier demo are replaced.")

_MAX_CPU_DEVICES = 8


@dataclass(frozen=True)
class DemoPlan:
    """Numbers of questions, prompts and training steps of the demo.

    Attributes:
      per_topic: Questions per topic.
      per_category: Prompts per category.
      new_per_topic: Questions per topic about the new words.
      new_per_category: Prompts per category with the new words.
      per_kind: Edits per kind.
      per_plot: Conversations with generated images per plot.
      finetune: Words, records and steps of the fine-tuning.
      flow_per_category: Prompts per category for JanusFlow.
    """

    per_topic: int = 60
    per_category: int = 40
    new_per_topic: int = 40
    new_per_category: int = 20
    per_kind: int = 5
    per_plot: int = 3
    finetune: FineTuneSpec = field(default_factory=FineTuneSpec)
    flow_per_category: int = 4


def main(_: Sequence[str]) -> None:
    """Runs the demo with the shipped models."""
    require("The page of the demo", "jinja2", "matplotlib")
    import jax

    from examples.shapes.models import JANUS, JANUS_EDITS, JANUSFLOW

    # On a host without an accelerator, each core is a device.
    jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, _MAX_CPU_DEVICES))
    cli.enable_compilation_cache()
    with output_folder(Path(_OUT.value)) as out:
        run(out, JANUS, JANUS_EDITS, JANUSFLOW, DemoPlan())


def run(out: Path, janus: Path, editor: Path, janusflow: Path, plan: DemoPlan) -> dict[str, float]:
    """Runs all steps of the demo.

    Args:
      janus: Folder of a Janus in the released layout.
      editor: Folder of a Janus that edits images and generates images in conversations.
      janusflow: Folder of a JanusFlow in the released layout.

    Returns:
      The content of report.json.
    """
    import jax

    import janus_jax
    from janus_jax.sharding import make_mesh

    start = time.monotonic()
    for folder in ("converted", "finetuned", "data", "run", "before", "after", "context", "flow"):
        shutil.rmtree(out / folder, ignore_errors=True)

    _step(1, f"Import {janus.name}, a PyTorch checkpoint")
    _import(janus, out / "converted")
    model = janus_jax.load(out / "converted", "float32", make_mesh(data=-1, fsdp=1))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    _say(f"{num_params:,} parameters on {jax.device_count()} x {jax.devices()[0].device_kind}.")

    _step(2, "Answer questions and generate images of combinations that training never showed alone")
    before = _evaluate(model, out / "before", plan)
    _show(before)

    _step(3, "Scores, with the chance level")
    _print_table({"now": before.table()})

    _step(4, f"Edit images, and generate images in conversations, with {editor.name}")
    context = _evaluate_context(editor, out / "context", plan)
    _show_context(context)

    _step(5, f"Fine-tune on new words: {' and '.join(plan.finetune.words)}")
    tuning = finetune(plan.finetune, out, _say)
    _say(
        f"Killed after step {tuning.killed_at}, resumed from step {tuning.resumed_at}: {tuning.repeated} losses were "
        f"computed twice and are bitwise equal."
    )
    model = janus_jax.load(out / "finetuned", "float32", make_mesh(data=-1, fsdp=1))
    after = _evaluate(model, out / "after", plan)
    _print_table({"before": before.table(), "after": after.table()})

    _step(6, f"Generate images with {janusflow.name}, by a flow")
    flow = _generate_with_flow(janusflow, out / "flow", plan)

    results = report(before, after, context, (time.monotonic() - start) / 60)
    (out / "report.json").write_text(json.dumps(results, indent=2) + "\n")
    _step(7, "Write the page")
    from examples.shapes.demo.page import write_page

    page = out / "index.html"
    write_page(
        page, before, after, context=context, flow=flow, tuning=tuning, report=results, words=plan.finetune.words
    )
    _say(f"Page: {page}. Scores: {out / 'report.json'}. Fine-tuned model: {out / 'finetuned'}.")
    print(f"\nDone in {results['minutes']:.1f} minutes.\n")
    print("To chat, generate and edit in a browser, run this command and open http://127.0.0.1:8000:")
    print(f"   {sys.executable} -m launch.serve --model {editor} --dtype float32\n")
    return results


def _import(released: Path, converted: Path) -> None:
    from checkpoints_convert import convert

    exported = converted.with_name("exported")
    shutil.rmtree(exported, ignore_errors=True)
    _say(str(convert(released, converted, progress=True)))
    convert(converted, exported, "released", progress=True)
    _say(f"Exported again: {compare_checkpoints(released, exported)} tensors are bitwise equal.")
    shutil.rmtree(exported)


def compare_checkpoints(first: Path, second: Path) -> int:
    """Returns the number of tensors of two checkpoint folders with bitwise equal weights.

    Raises:
      JanusError: A tensor differs or is missing.
    """
    from checkpoints_convert.tensor_files import open_tensors

    before, after = open_tensors(first), open_tensors(second)
    if before.keys() != after.keys():
        raise JanusError(
            f"Only one of {first} and {second} contains {min(before.keys() ^ after.keys())}; convert the other again."
        )
    for name, array in progress_bar(iterable=before.items(), unit=" tensors", desc="comparing"):
        other = after[name]
        if array.dtype != other.dtype or array.tobytes() != other.tobytes():
            raise JanusError(f"{name} differs between {first} and {second}; one of the two is damaged.")
    return len(before)


def _evaluate(model: "Pretrained", folder: Path, plan: DemoPlan) -> DemoScores:
    """Returns the scores of a model; its answers and images are stored in the folder."""
    from examples.shapes.dataset import DEFAULT_VOCABULARY
    from examples.shapes.evaluation import ShapesProtocol, evaluate_generation, evaluate_understanding
    from janus_jax.progress import count_bar

    words = plan.finetune.words
    protocols = {
        "old": ShapesProtocol(per_topic=plan.per_topic, per_category=plan.per_category),
        "new": ShapesProtocol(
            per_topic=plan.new_per_topic,
            per_category=plan.new_per_category,
            vocabulary=DEFAULT_VOCABULARY.with_extras(*words),
            about=frozenset(words),
        ),
    }
    understanding, generation = [], []
    for name, protocol in protocols.items():
        with count_bar(f"   answering, {name} words") as bar:
            understanding.append(evaluate_understanding(model, folder / f"{name}_answers", protocol, on_progress=bar))
        with count_bar(f"   generating, {name} words", "images") as bar:
            generation.append(evaluate_generation(model, folder / f"{name}_images", protocol, on_progress=bar))
    return DemoScores(understanding[0], generation[0], understanding[1], generation[1])


def _evaluate_context(editor: Path, folder: Path, plan: DemoPlan) -> ContextScores:
    """Returns the edits and conversations of a model; its images are stored in the folder."""
    import janus_jax
    from examples.shapes.evaluation import ShapesProtocol, evaluate_drawing, evaluate_editing
    from janus_jax.progress import count_bar
    from janus_jax.sharding import make_mesh

    model = janus_jax.load(editor, "float32", make_mesh(data=-1, fsdp=1))
    protocol = ShapesProtocol(per_kind=plan.per_kind, per_plot=plan.per_plot)
    with count_bar("   editing", "images") as bar:
        editing = evaluate_editing(model, folder / "edits", protocol, on_progress=bar)
    with count_bar("   talking", "conversations") as bar:
        drawing = evaluate_drawing(model, folder / "conversations", protocol, on_progress=bar)
    return ContextScores(editing, drawing)


def _show_context(context: ContextScores) -> None:
    edits = context.editing
    for index in range(0, len(edits.edits), max(len(edits.edits) // 4, 1)):
        _say(f"{edits.edits[index].request.text}: {edits.verdicts[index].reason or 'as asked for'}")
    for turn in context.longest_conversation().turns:
        _say(f"> {turn.text}")
        _say((turn.reply if isinstance(turn.reply, str) else "(an image)") + (f"  ({turn.reason})" * bool(turn.reason)))
    _print_table({"now": context.table()})


def _show(scores: DemoScores) -> None:
    answers, images = scores.understanding, scores.generation
    for index in range(0, len(answers.questions), max(len(answers.questions) // 5, 1)):
        question = answers.questions[index]
        mark = "correct" if answers.correct[index] else f"wrong, expected {question.answer}"
        _say(f"{question.text}  {answers.answers[index]}  ({mark})")
    for index in range(0, len(images.prompts), max(len(images.prompts) // 6, 1)):
        _say(f"{images.prompts[index].text}: {images.verdicts[index].reason or 'as asked for'}")


def _generate_with_flow(janusflow: Path, folder: Path, plan: DemoPlan) -> "GenerationResult":
    """Returns images generated by JanusFlow, all prompts in one batch."""
    import janus_jax
    from examples.shapes.dataset import Category
    from examples.shapes.evaluation import ShapesProtocol, evaluate_generation
    from janus_jax.progress import count_bar
    from janus_jax.sharding import make_mesh

    model = janus_jax.load(janusflow, "float32", make_mesh(data=-1, fsdp=1))
    count = plan.flow_per_category
    protocol = ShapesProtocol(per_category=count, batch_size=len(Category) * count)
    with count_bar("   generating", "images") as bar:
        result = evaluate_generation(model, folder, protocol, on_progress=bar)
    correct = sum(verdict.correct for verdict in result.verdicts)
    _say(f"{correct} of {len(result.verdicts)} images are correct.")
    return result


def _print_table(columns: Mapping[str, Mapping[str, float]]) -> None:
    scores = next(iter(columns.values()))
    chances = {name.removeprefix("chance."): value for name, value in scores.items() if name.startswith("chance.")}
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
