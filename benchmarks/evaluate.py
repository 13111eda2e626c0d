"""What the evaluation's runner costs: questions and pictures a second through it, beside the bare model.

    python -m benchmarks.evaluate
    python -m benchmarks.evaluate --model Janus-Pro-1B --questions 64 --pictures 8

Without --model a model with random weights answers and draws: 8 layers of width 512, pictures of the embedded world.
The runner's cost is the host's, so much a question whatever answers it: the smaller the model, the larger its share.

Both sides take the same batches of the embedded world's questions and prompts, in turn, in one process. Through the
runner pictures are decoded, questions laid into rows, answers flushed to the disk and drawings written as PNG; the bare
model is given rows that are ready, and what it draws is thrown away. The overhead is the median over rounds of the
runner's time over the bare model's, less one.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

import janus_jax
from benchmarks.shared import machine, weights
from examples.shapes import generation_benchmark as generation
from examples.shapes import understanding_benchmark as understanding
from examples.shapes.configs import tokenizer as shapes_tokenizer
from examples.shapes.models import SHAPES
from janus_jax.commands import cli
from janus_jax.config import Dtype, Execution, JanusConfig, LlamaConfig, SiglipConfig
from janus_jax.evaluation.generation import generate_images as pictures
from janus_jax.evaluation.runner import answering, batched, collect, num_places
from janus_jax.models.factory import make_model
from janus_jax.pretrained import Pretrained, place_params
from janus_jax.processing import Processor

_MODEL = flags.DEFINE_string("model", None, "folder of the model that answers and draws; none: random weights")
_QUESTIONS = flags.DEFINE_integer("questions", 150, "asked in a round", lower_bound=5)
_PICTURES = flags.DEFINE_integer("pictures", 60, "drawn in a round", lower_bound=6)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 30, "at a time", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "of either side, in turn", lower_bound=1)

RANDOM = JanusConfig(
    name="8 layers of width 512",
    und_encoder=SiglipConfig(image_size=48, patch_size=8, width=512, depth=6, num_heads=8, mlp_dim=2048),
    gen_encoder=shapes_tokenizer.RECIPE.model,
    llm=LlamaConfig(512, 512, 8, 8, 8, 64, 1408, max_positions=512),
    gen_head_width=512,
)

Run = Callable[[], object]


def main(_: Sequence[str]) -> None:
    """Prints the table, and the figures as one object of json."""
    import jax

    cli.enable_compilation_cache()
    dtype: Dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = janus_jax.load(_MODEL.value, dtype) if _MODEL.value else _random(dtype)
    sides = {"questions": _asking(model), "pictures": _drawing(model)}
    counts = {name: count for name, (count, _, _) in sides.items()}
    rates: dict[str, dict[str, float]] = {}
    overheads: dict[str, float] = {}
    for name, (count, runner, bare) in sides.items():
        times = _in_turn(runner, bare)
        medians = [statistics.median(each) for each in times]
        rates[name] = {"runner": count / medians[0], "bare": count / medians[1]}
        overheads[name] = statistics.median(one / other for one, other in zip(*times, strict=True)) - 1
    print(f"{model.config.name}, {dtype}, {jax.device_count()} device(s), batches of {_BATCH_SIZE.value}\n")
    print(f"{'a second':12}{'runner':>10}{'bare model':>12}{'overhead':>10}")
    for name, rate in rates.items():
        print(f"{name:12}{rate['runner']:10.1f}{rate['bare']:12.1f}{overheads[name]:10.1%}")
    figures: dict[str, Any] = {f"{name}_overhead": round(value, 4) for name, value in overheads.items()}
    for name, rate in rates.items():
        figures |= {f"{name}_per_second_{side}": round(value, 2) for side, value in rate.items()}
    print("\n" + json.dumps(figures | {f"{name}_asked": count for name, count in counts.items()} | machine()))


def _random(dtype: Dtype) -> Pretrained:
    """A model of random weights that reads with the shipped model's tokenizer."""
    execution = Execution(dtype=dtype, param_dtype=dtype, layers="unrolled")
    numbers = ((unit.leaf.keys, unit.layer, array.astype(dtype)) for unit, array in weights(RANDOM))
    params = place_params(numbers, RANDOM, execution, mesh=None)
    return Pretrained(RANDOM, params, Processor.from_directory(SHAPES, RANDOM), make_model(RANDOM, execution))


def _in_turn(runner: Run, bare: Run) -> tuple[list[float], list[float]]:
    """Seconds of each round of both, after one that compiles."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, _ROUNDS.value):
        for run, kept in zip((runner, bare), times, strict=True):
            began = time.perf_counter()
            run()
            if number >= 0:
                kept.append(time.perf_counter() - began)
    return times


def _asking(model: janus_jax.Pretrained) -> tuple[int, Run, Run]:
    """How many questions, and the two ways to ask them."""
    options = {"split": "test", "per_topic": str(_QUESTIONS.value // 5)}
    questions, size = understanding.read(Path(), options), _BATCH_SIZE.value
    work = answering(model, size)
    batches = batched(questions, size, lambda question: num_places(model.processor, question))
    rows = [
        [model.processor.understanding_sequence(one.messages, None, one.system_prompt) for one in batch]
        for batch in batches
    ]
    full = [batch + [batch[-1]] * (size - len(batch)) for batch in rows]

    def bare() -> None:
        for batch in full:
            model.answer(batch, max_new_tokens=questions[0].max_new_tokens, temperature=0.0)

    return len(questions), _through(lambda folder: collect(questions, work, folder, {})), bare


def _drawing(model: janus_jax.Pretrained) -> tuple[int, Run, Run]:
    """How many pictures, and the two ways to have them drawn."""
    options = {"split": "test", "per_category": str(_PICTURES.value // 6), "guidance_scale": "2", "temperature": "0.7"}
    wanted, size = generation.read(Path(), options), _BATCH_SIZE.value
    batches = pictures.batched(model.processor, wanted, size)

    def bare() -> None:
        for batch in batches:
            full = [*batch, *[batch[-1]] * (size - len(batch))]
            numbers = [(picture.prompt_number, picture.number) for picture in full]
            model.sample_images([picture.prompt for picture in full], numbers, 0, guidance_scale=2.0, temperature=0.7)

    def runner(folder: Path) -> object:
        return collect(wanted, pictures.drawing(model, folder, options, 0, size), folder, {})

    return len(wanted), _through(runner), bare


def _through(run: Callable[[Path], object]) -> Run:
    """The run, each time in a folder of its own."""

    def once() -> None:
        folder = Path(tempfile.mkdtemp())
        try:
            run(folder)
        finally:
            shutil.rmtree(folder)

    return once


if __name__ == "__main__":
    cli.run(main)
