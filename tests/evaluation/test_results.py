"""Tests of hashes, score tables, options and the registry."""

import os
import shutil

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation import registry
from janus_jax.evaluation.benchmark import Question
from janus_jax.evaluation.registry import BENCHMARKS, find_benchmark, register_benchmark
from janus_jax.evaluation.results import format_table, items_digest, model_fingerprint
from tests.evaluation.fakes import OWN_BENCHMARK


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "params").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "params" / "0").write_bytes(os.urandom(1 << 20))
    return folder


def test_the_fingerprint_does_not_depend_on_the_folder_or_on_other_files(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "elsewhere" / "other")
    (copy / "README.md").write_text("A model.")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "fetched").write_text("today")
    assert model_fingerprint(copy) == model_fingerprint(model)


def test_the_fingerprint_depends_on_weights_and_config(model):
    fingerprints = {model_fingerprint(model)}
    (model / "params" / "0").write_bytes(os.urandom(1 << 20))
    fingerprints.add(model_fingerprint(model))
    (model / "config.json").write_text("[]")
    fingerprints.add(model_fingerprint(model))
    assert len(fingerprints) == 3


def question(text="What?", image=b"image", **more):
    message = {"role": "user", "content": text, "images": [image]}
    return Question(**{"id": "1", "messages": [message]} | more)


def test_the_digest_depends_on_all_inputs_but_not_on_the_image_folder(tmp_path):
    variants = [
        question(),
        question(text="Who?"),
        question(image=b"another"),
        question(image=tmp_path / "a.jpg"),
        question(id="2"),
        question(system_prompt="Think."),
        question(max_new_tokens=5),
    ]
    assert len({items_digest([variant]) for variant in variants}) == 7
    assert items_digest([question(image=tmp_path / "x" / "a.jpg")]) == items_digest(
        [question(image=tmp_path / "a.jpg")]
    )


def test_the_table_shows_published_scores_first():
    scores = {"existence.score": 190, "perception": 1444.5}
    lines = format_table(find_benchmark("mme"), scores, "janus_pro_1b").splitlines()
    assert lines[1].split() == ["here", "paper", "(janus_pro_1b)"]
    assert lines[2].split() == ["perception", "1444.50", "1444.0"]
    assert lines[3].split() == ["existence.score", "190.00"]


def test_the_table_names_scores_of_external_scorers():
    assert "graded: 39.8 in the paper" in format_table(find_benchmark("mmvet"), {}, "janus_pro_1b")


@pytest.mark.parametrize(("model", "compare"), [("mine", True), ("janus_pro_1b", False)])
def test_other_models_and_partial_runs_are_not_compared(model, compare):
    assert "paper" not in format_table(find_benchmark("mme"), {"perception": 1.0}, model, compare=compare)


def test_options_have_defaults_and_allowed_values():
    benchmark = find_benchmark("mmmu")
    assert benchmark.resolve_options({}) == {"prompt": "authors"}
    assert benchmark.resolve_options({"prompt": "official"}) == {"prompt": "official"}
    with pytest.raises(JanusError, match=r"mmmu has no option 'round'; its options are prompt"):
        benchmark.resolve_options({"round": "true"})
    with pytest.raises(JanusError, match=r"option prompt is 'yes'; it must be authors\|official"):
        benchmark.resolve_options({"prompt": "yes"})


def test_published_scores_are_arranged_by_model():
    assert find_benchmark("pope").published_scores("janus_1.3b") == {"random.f1": 87.0}
    assert find_benchmark("vqav2").published_scores("janus_pro_7b") == {}


def test_a_registered_benchmark_is_found_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "my_benchmark.py").write_text(OWN_BENCHMARK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "BENCHMARKS", dict(BENCHMARKS))
    assert find_benchmark("my_benchmark:mine").name == "mine"
    with pytest.raises(JanusError, match=r"my_benchmark:other is unknown; use pope, .*, mine, or MODULE:NAME"):
        find_benchmark("my_benchmark:other")
    with pytest.raises(JanusError, match="absent:mine: No module named 'absent'; give an importable module"):
        find_benchmark("absent:mine")
    with pytest.raises(JanusError, match=r"'my_benchmark.py/x' is not the name of a module; give MODULE:NAME"):
        find_benchmark("my_benchmark.py/x:mine")
    with pytest.raises(JanusError, match="pope is registered already"):
        register_benchmark(find_benchmark("pope"))
