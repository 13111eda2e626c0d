"""Tests of the callback that runs benchmarks during training."""

import io
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation import registry
from janus_jax.evaluation.understanding import pope
from janus_jax.models.janus import Janus
from janus_jax.pretrained import Pretrained
from janus_jax.training.callbacks.evaluation import RunBenchmarks
from janus_jax.training.recipe import Evaluation, Intervals
from tests import tiny
from tests.evaluation.fakes import OWN_BENCHMARK
from tests.evaluation.test_benchmarks import json_lines, pope_entry, write_files
from tests.training import runs
from tests.training.test_samples_callback import last_step
from tests.training.test_trainer import params


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pope")
    (folder / "val2014").mkdir()
    for number in (1, 2):
        tiny.picture(number).save(folder / "val2014" / f"COCO_val2014_{number:012}.jpg")
    entries = [pope_entry(n, label) for n, label in ((1, "yes"), (2, "no"))]
    write_files(folder, {f"coco_pope_{split}.json": json_lines(*entries) for split in pope.SPLITS})
    return folder


def with_benchmarks(*benchmarks, **fields):
    """Returns a recipe that runs benchmarks at every second step."""
    intervals = Intervals(report=1, evaluate=0, benchmark=2, save=0)
    return replace(runs.recipe(), evaluation=Evaluation(benchmarks, **fields), intervals=intervals)


@pytest.mark.slow
def test_scores_match_the_params_of_the_step(data, tmp_path):
    state = runs.run(with_benchmarks(("pope", str(data)), batch_size=4), tmp_path)
    model = Pretrained(tiny.CONFIG, params(state), tiny.processor(), Janus(tiny.CONFIG))
    questions = pope.BENCHMARK.read(data, {})
    answers = {q.id: model.chat(q.messages, max_new_tokens=32, system_prompt="") for q in questions}
    found = json.loads((tmp_path / "stage_1" / "benchmarks" / "step_4" / "pope" / "answers.json").read_text())
    assert found == answers
    lines = map(json.loads, (tmp_path / "stage_1" / "metrics.jsonl").read_text().splitlines())
    logged = [line for line in lines if "benchmarks/pope/random.accuracy" in line]
    assert [line["step"] for line in logged] == [2, 4]
    scores = pope.BENCHMARK.score(questions, answers, {})
    assert logged[1]["benchmarks/pope/random.accuracy"] == scores["random.accuracy"]


def test_non_finite_logits_do_not_end_the_run(data, tmp_path):
    nan_params = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), tiny.stacked_params())
    stream = io.StringIO()
    benchmarks = RunBenchmarks(with_benchmarks(("pope", str(data)), limit=2), tiny.processor(), tmp_path)
    benchmarks.after_step(last_step(nan_params, stream))
    assert "step 1: no scores of pope: The logits are NaN" in stream.getvalue()


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        (("pope", "absent"), "absent"),
        (("pop", "."), "config.evaluation.benchmarks pop is unknown; use pope"),
        (("geneval", "."), "."),
        (("pope",), "a pair"),
    ],
)
def test_unusable_benchmark_is_rejected(benchmark, message, tmp_path):
    with pytest.raises(JanusError, match=message):
        RunBenchmarks(with_benchmarks(benchmark), tiny.processor(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_benchmark_of_the_user_is_found_in_its_module(data, tmp_path, monkeypatch):
    (tmp_path / "callback_benchmark.py").write_text(OWN_BENCHMARK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "BENCHMARKS", dict(registry.BENCHMARKS))
    recipe = with_benchmarks(("callback_benchmark:mine", str(data)), ("pope", str(data)), limit=2)
    selected = RunBenchmarks(recipe, tiny.processor(), tmp_path)._selected
    assert [(one.benchmark.name, len(one.questions)) for one in selected] == [("mine", 2), ("pope", 2)]
