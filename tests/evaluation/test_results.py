"""What a run is told by, and the table of what came of it."""

import os
import shutil

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation import registry
from janus_jax.evaluation.benchmark import Question
from janus_jax.evaluation.registry import BENCHMARKS, find_benchmark, register_benchmark
from janus_jax.evaluation.results import check_pictures, digest, fingerprint, table
from tests.evaluation.asking import put_picture


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "params").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "params" / "0").write_bytes(os.urandom(1 << 20))
    return folder


def test_a_model_is_told_by_its_weights_and_not_by_its_place(model, tmp_path):
    here = fingerprint(model)
    there = shutil.copytree(model, tmp_path / "elsewhere" / "other")
    (there / "README.md").write_text("A model.")
    (there / ".cache").mkdir()
    (there / ".cache" / "fetched").write_text("today")
    assert fingerprint(there) == here


def test_another_model_of_the_same_sizes_is_another(model):
    before = fingerprint(model)
    (model / "params" / "0").write_bytes(os.urandom(1 << 20))
    trained = fingerprint(model)
    (model / "config.json").write_text("[]")
    assert len({before, trained, fingerprint(model)}) == 3


def question(text="What?", image=b"picture", **more):
    message = {"role": "user", "content": text, "images": [image]}
    return Question(**{"id": "1", "messages": [message]} | more)


def test_questions_are_told_by_all_that_is_asked(tmp_path):
    others = [
        question(text="Who?"),
        question(image=b"another"),
        question(image=tmp_path / "a.jpg"),
        question(id="2"),
        question(system_prompt="Think."),
        question(max_new_tokens=5),
    ]
    assert len({digest([other]) for other in (question(), *others)}) == 7
    assert digest([question(image=tmp_path / "x" / "a.jpg")]) == digest([question(image=tmp_path / "a.jpg")])


def test_a_picture_that_is_not_there_is_told_before_anything_is_asked(tmp_path):
    put_picture(tmp_path / "a.png")
    check_pictures([question(image=tmp_path / "a.png"), question()])
    with pytest.raises(JanusError, match=r"b.png, the picture of question 1, is missing"):
        check_pictures([question(image=tmp_path / "a.png"), question(image=tmp_path / "b.png")])
    with pytest.raises(JanusError, match=r"no/b.png, the picture of question 1, is missing"):
        check_pictures([question(image=tmp_path / "no" / "b.png")])


def test_figures_stand_beside_those_of_the_paper():
    lines = table(find_benchmark("mme"), {"existence.score": 190, "perception": 1444.5}, "janus_pro_1b").splitlines()
    assert lines[1].split() == ["here", "paper", "(janus_pro_1b)"]
    assert lines[2].split() == ["perception", "1444.50", "1444.0"]
    assert lines[3].split() == ["existence.score", "190.00"]


def test_what_is_graded_outside_is_said():
    assert "graded: 39.8 in the paper; it is graded outside" in table(find_benchmark("mmvet"), {}, "janus_pro_1b")


@pytest.mark.parametrize(("model", "paper"), [("mine", True), ("janus_pro_1b", False)])
def test_other_models_and_parts_of_a_benchmark_have_no_row_beside_them(model, paper):
    assert "paper" not in table(find_benchmark("mme"), {"perception": 1.0}, model, paper)


def test_options_are_settled_by_their_defaults_and_refused_otherwise():
    one = find_benchmark("mmbench")
    assert one.settled({}) == {"circular": "false"}
    assert one.settled({"circular": "true"}) == {"circular": "true"}
    with pytest.raises(JanusError, match=r"mmbench has no option 'round'; its options: circular"):
        one.settled({"round": "true"})
    with pytest.raises(JanusError, match=r"option circular is 'yes'; it must be one of false, true"):
        one.settled({"circular": "yes"})


def test_the_papers_models_have_their_rows():
    assert BENCHMARKS["pope"].published["janus_1.3b"] == {"random.f1": 87.0}
    assert BENCHMARKS["vqav2"].published["janus_pro_7b"] == {}
    assert BENCHMARKS["seed"].published["janusflow_1.3b"] == {"accuracy": 70.5}


def test_a_registered_benchmark_is_found_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "my_benchmark.py").write_text("""
import dataclasses
from janus_jax.evaluation.registry import find_benchmark, register_benchmark
register_benchmark(dataclasses.replace(find_benchmark("pope"), name="mine"))
""")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "BENCHMARKS", dict(BENCHMARKS))
    assert find_benchmark("my_benchmark:mine").name == "mine"
    with pytest.raises(JanusError, match="no benchmark 'other'"):
        find_benchmark("my_benchmark:other")
    with pytest.raises(JanusError, match="No module named 'absent'"):
        find_benchmark("absent:mine")
    with pytest.raises(JanusError, match="pope is registered already"):
        register_benchmark(find_benchmark("pope"))
