"""What docs/evaluation.md says holds: its benchmark works, and it knows all that there are."""

import json
import re
from pathlib import Path

import pytest

from janus_jax.evaluation import registry
from janus_jax.evaluation.benchmark import Amount, default_of
from janus_jax.evaluation.generation.image_requests import DRAWING
from janus_jax.evaluation.registry import BENCHMARKS
from janus_jax.evaluation.runner import answering, collect
from tests.evaluation.asking import FakeModel, put_picture

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "evaluation.md").read_text()
IMPORTS = """
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from janus_jax.evaluation.benchmark import Answers, Benchmark, Options, Question, Scores, check_ids
from janus_jax.evaluation.registry import register_benchmark
from janus_jax.evaluation.understanding.prompts import about, short_question
from janus_jax.evaluation.understanding.benchmark_files import json_lines, percent
"""


def test_the_example_benchmark_in_the_docs_works(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names = {"__name__": "colours"}
    monkeypatch.setattr(registry, "BENCHMARKS", dict(BENCHMARKS))
    exec(IMPORTS + example, names)
    own = registry.BENCHMARKS["colours"]
    entries = [{"id": n, "image": f"{n}.png", "label": colour} for n, colour in enumerate(["red", "blue"])]
    (tmp_path / "colours.jsonl").write_text("\n".join(map(json.dumps, entries)))
    for n in range(2):
        put_picture(tmp_path / "images" / f"{n}.png", n)
    questions = own.read(tmp_path, {})
    answers = collect(
        questions, answering(FakeModel(lambda text: "Red"), 2), tmp_path / "out", {"benchmark": "colours"}
    )
    assert own.score(questions, answers, {}) == {"accuracy": 50}
    own.write_predictions(questions, answers, tmp_path)
    assert json.loads((tmp_path / "colours.json").read_text()) == {"0": "Red", "1": "Red"}


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=lambda benchmark: benchmark.name)
def test_docs_list_every_benchmark_with_its_options(benchmark):
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{benchmark.name}`"))
    for option, values in benchmark.options.items():
        if option not in DRAWING:
            allowed = default_of(values) if isinstance(values, Amount) else "|".join(values)
            assert f"`{option}={allowed}`" in row.replace("\\|", "|")
