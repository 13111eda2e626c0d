"""Measures the overhead of the evaluation runner, compared with calling the model directly.

    python -m benchmarks.evaluate
    python -m benchmarks.evaluate --model Janus-Pro-1B --questions 64 --images 8

Without --model the benchmark uses a model with random weights: 8 layers of width 512, for images of the size of the
shapes dataset. The runner needs host time per question that does not depend on the model, so its overhead is larger for
smaller models.

The runner and the model alternately process the same batches of questions and prompts from the shapes dataset. The
runner decodes input images, builds prompts, writes answers to the disk and saves PNG files. The model alone gets
prepared prompts, and its images are discarded. The overhead is the median, over rounds, of the ratio of both times,
minus 1. The serving engine processes the same questions and prompts, also alternately with the runner.
"""

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from absl import flags

import janus_jax
from benchmarks.shared import alternate, load_weights, machine, median_ratio
from examples.shapes import generation_benchmark, understanding_benchmark
from examples.shapes.configs import tokenizer as shapes_tokenizer
from examples.shapes.models import JANUS
from janus_jax.commands import cli
from janus_jax.config import Dtype, Execution, JanusConfig, LlamaConfig, SiglipConfig
from janus_jax.evaluation.generation.generate_images import batch_requests, generate_images, prompt_length
from janus_jax.evaluation.runner import answer_questions, batch_questions, collect_answers, estimate_length
from janus_jax.generation.engine import ChatRequest, Engine, EngineOptions, GenerateRequest
from janus_jax.models.factory import make_model
from janus_jax.pretrained import Pretrained
from janus_jax.processing import Processor

_MODEL = flags.DEFINE_string("model", None, "model folder (default: random weights)")
_QUESTIONS = flags.DEFINE_integer("questions", 150, "questions per round", lower_bound=5)
_IMAGES = flags.DEFINE_integer("images", 60, "generated images per round", lower_bound=6)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 30, "questions or images per batch", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "timed rounds", lower_bound=1)

RANDOM = JanusConfig(
    name="8 layers of width 512",
    und_encoder=SiglipConfig(image_size=48, patch_size=16, width=512, depth=6, num_heads=8, mlp_dim=2048),
    gen_encoder=shapes_tokenizer.RECIPE.model,
    llm=LlamaConfig(512, 512, 8, 8, 8, 64, 1408, max_positions=512),
    gen_head_width=512,
)

Run = Callable[[], object]


def main(_: Sequence[str]) -> None:
    """Prints a table and a line of JSON."""
    import jax

    cli.enable_compilation_cache()
    dtype: Dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = janus_jax.load(_MODEL.value, dtype) if _MODEL.value else _random(dtype)
    options = EngineOptions(slots=2 * _BATCH_SIZE.value, rows=(_BATCH_SIZE.value,), steps_per_call=4)
    print(f"{model.config.name}, {dtype}, {jax.device_count()} device(s), batches of {_BATCH_SIZE.value}\n")
    print(f"{'per second':12}{'runner':>10}{'model alone':>12}{'overhead':>10}{'engine':>10}{'engine / runner':>17}")
    results: dict[str, Any] = {}
    engine = Engine(model, options)
    engine.start(warm_up=False)
    sides = {
        "questions": (*_questions(model), _engine_questions(engine)),
        "images": (*_images(model), _engine_images(engine)),
    }
    for name, (count, runner, bare, served) in sides.items():
        alternate(runner, bare, 1)  # Compiles.
        served()
        times = alternate(runner, bare, _ROUNDS.value)
        rates = [count / median(seconds) for seconds in times]
        overhead = median_ratio(*times) - 1
        served_times = alternate(served, runner, _ROUNDS.value)
        rates.append(count / median(served_times[0]))
        share = 1 / median_ratio(*served_times)
        print(f"{name:12}{rates[0]:10.1f}{rates[1]:12.1f}{overhead:10.1%}{rates[2]:10.1f}{share:17.2f}")
        results[f"{name}_overhead"] = round(overhead, 4)
        results[f"{name}_engine_to_runner"] = round(share, 4)
        names = ("runner", "bare", "engine")
        results |= {f"{name}_per_second_{side}": round(rates[i], 2) for i, side in enumerate(names)}
        results[f"{name}_count"] = count
    engine.stop()
    print("\n" + json.dumps(results | machine()))


def _random(dtype: Dtype) -> Pretrained:
    """Returns a model with random weights and the tokenizer of the shapes model."""
    execution = Execution(dtype=dtype, param_dtype=dtype, layers="unrolled")
    processor = Processor.from_directory(JANUS, RANDOM)
    return Pretrained(RANDOM, load_weights(RANDOM, execution), processor, make_model(RANDOM, execution))


def _questions(model: janus_jax.Pretrained) -> tuple[int, Run, Run]:
    """Returns the number of questions, and functions that answer them with the runner and with the model alone."""
    options = {"split": "test", "per_topic": str(_QUESTIONS.value // 5)}
    questions, size = understanding_benchmark.read(Path(), options), _BATCH_SIZE.value
    batches = [
        [model.processor.understanding_sequence(one.messages, None, one.system_prompt) for one in batch]
        for batch in batch_questions(questions, size, lambda question: estimate_length(model.processor, question))
    ]

    def bare() -> None:
        for batch in batches:
            padded = batch + [batch[-1]] * (size - len(batch))
            model.answer(padded, max_new_tokens=questions[0].max_new_tokens, temperature=0.0)

    def runner(folder: Path) -> object:
        return collect_answers(questions, lambda items: answer_questions(model, items, size), folder, {})

    return len(questions), _in_new_folder(runner), bare


def _engine_questions(engine: Engine) -> Run:
    """Returns a function that answers the questions with the engine."""
    questions = understanding_benchmark.read(Path(), {"split": "test", "per_topic": str(_QUESTIONS.value // 5)})
    return lambda: _serve(
        engine,
        [
            ChatRequest(
                messages=question.messages, system_prompt=question.system_prompt, max_new_tokens=question.max_new_tokens
            )
            for question in questions
        ],
    )


def _engine_images(engine: Engine) -> Run:
    """Returns a function that generates the images with the engine."""
    requests = generation_benchmark.read(Path(), {"split": "test", "per_category": str(_IMAGES.value // 6)})
    settings = {"guidance_scale": 2.0, "temperature": 0.7}
    return lambda: _serve(
        engine,
        [
            GenerateRequest(prompt=request.prompt, prompt_index=request.prompt_index, settings=settings)
            for request in requests
        ],
    )


def _serve(engine: Engine, requests: Sequence[ChatRequest | GenerateRequest]) -> None:
    # Some threads decode images and tokenize prompts while the devices work.
    with ThreadPoolExecutor(2) as readers:
        for handle in list(readers.map(engine.submit, requests)):
            handle.result()


def _images(model: janus_jax.Pretrained) -> tuple[int, Run, Run]:
    """Returns the number of images, and functions that generate them with the runner and with the model alone."""
    options = {"split": "test", "per_category": str(_IMAGES.value // 6), "guidance_scale": "2", "temperature": "0.7"}
    requests, size = generation_benchmark.read(Path(), options), _BATCH_SIZE.value
    batches = batch_requests(requests, functools.partial(prompt_length, model.processor), size)

    def bare() -> None:
        for batch in batches:
            padded = [*batch, *[batch[-1]] * (size - len(batch))]
            indices = [(request.prompt_index, request.image_index) for request in padded]
            model.sample_images([request.prompt for request in padded], indices, 0, guidance_scale=2.0, temperature=0.7)

    def runner(folder: Path) -> object:
        return collect_answers(
            requests,
            lambda items: generate_images(model, items, folder, options=options, seed=0, batch_size=size),
            folder,
            {},
        )

    return len(requests), _in_new_folder(runner), bare


def _in_new_folder(run: Callable[[Path], object]) -> Run:
    """Returns a function that calls `run` with a temporary folder."""

    def once() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder))

    return once


if __name__ == "__main__":
    cli.run(main)
