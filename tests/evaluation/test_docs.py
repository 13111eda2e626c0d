"""Tests of docs/evaluation.md: its example benchmark works, and it lists all benchmarks."""

import json
import re
from pathlib import Path

import pytest

from janus_jax.evaluation import registry
from janus_jax.evaluation.benchmark import Choice
from janus_jax.evaluation.generation.edit_requests import EDIT_OPTIONS
from janus_jax.evaluation.generation.image_requests import SAMPLING_OPTIONS
from janus_jax.evaluation.registry import BENCHMARKS
from janus_jax.evaluation.runner import answer_questions, collect_answers
from tests.evaluation.fakes import FakeModel, write_image

TEXT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


def test_the_example_benchmark_works(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.setattr(registry, "BENCHMARKS", dict(BENCHMARKS))
    exec(example, {"__name__": "colors"})
    benchmark = registry.BENCHMARKS["colors"]
    entries = [{"id": n, "image": f"{n}.png", "label": color} for n, color in enumerate(["red", "blue"])]
    (tmp_path / "colors.jsonl").write_text("\n".join(map(json.dumps, entries)))
    for n in range(2):
        write_image(tmp_path / "images" / f"{n}.png", n)
    questions = benchmark.read(tmp_path, {})
    model = FakeModel(lambda text: "Red")
    answers = collect_answers(questions, lambda items: answer_questions(model, items, 2), tmp_path / "out", {})
    assert benchmark.score(questions, answers, {}) == {"accuracy": 50}
    benchmark.write_predictions(questions, answers, tmp_path)
    assert json.loads((tmp_path / "colors.json").read_text()) == {"0": "Red", "1": "Red"}


BUILT_IN = [one for one in BENCHMARKS.values() if one.read.__module__.startswith("janus_jax.")]


@pytest.mark.parametrize("benchmark", BUILT_IN, ids=lambda benchmark: benchmark.name)
def test_docs_list_every_benchmark_with_its_options(benchmark):
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{benchmark.name}`")).replace("\\|", "|")
    for name, option in benchmark.options.items():
        if name not in {**SAMPLING_OPTIONS, **EDIT_OPTIONS}:
            values = "|".join(option.values) if isinstance(option, Choice) else option.default
            assert f"`{name}={values}`" in row
