"""Tests of MM-Vet: prompts, and the input file of the external grader."""

import json

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.mmvet import BENCHMARK
from tests.evaluation.fakes import answer_in_order, image_names, prompt_text

OPTIONS = {"system_prompt": "authors"}
QUESTIONS = {
    "v1_0": {
        "imagename": "v1_0.png",
        "question": "What is x in the equation?",
        "answer": "-1<AND>-5",
        "imagesource": "https://example.org",
        "capability": ["ocr", "math"],
    },
    "v1_1": {"imagename": "v1_1.jpg", "question": "Why?", "answer": "Because", "capability": ["rec"]},
}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "mm-vet.json").write_text(json.dumps(QUESTIONS))
    return tmp_path


def test_questions_are_not_changed(data):
    questions = BENCHMARK.read(data, OPTIONS)
    assert prompt_text(questions[0]) == "<image_placeholder>\nWhat is x in the equation?"
    assert image_names(questions[1]) == ["v1_1.jpg"]
    assert questions[0].system_prompt.startswith("You are a helpful assistant.")
    assert BENCHMARK.read(data, {"system_prompt": "none"})[0].system_prompt == ""


def test_answers_are_written_for_the_grader_without_scores(data, tmp_path):
    questions = BENCHMARK.read(data, OPTIONS)
    answers = answer_in_order(questions, "x is -1\nor -5.", "晚上")
    assert BENCHMARK.score(questions, answers, OPTIONS) == {}
    BENCHMARK.write_predictions(questions, answers, tmp_path)
    assert json.loads((tmp_path / "mm-vet_predictions.json").read_text()) == {"v1_0": "x is -1\nor -5.", "v1_1": "晚上"}


def test_malformed_data_is_reported(data):
    (data / "mm-vet.json").write_text(json.dumps({"v1_0": {"question": "What?"}}))
    with pytest.raises(JanusError, match=r"mm-vet.json, entry v1_0: the field imagename is missing"):
        BENCHMARK.read(data, OPTIONS)
