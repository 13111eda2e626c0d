"""Tests of GQA."""

import json

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.gqa import BENCHMARK
from tests.evaluation.fakes import answer_in_order, image_names, prompt_text

QUESTIONS = {
    "201307251": {
        "question": "Is it overcast?",
        "imageId": "n161313",
        "answer": "no",
        "types": {"structural": "verify", "semantic": "global"},
    },
    "201640614": {
        "question": "Who is wearing the dress?",
        "imageId": 2354786,
        "answer": "woman",
        "types": {"structural": "query", "semantic": "rel"},
    },
    "202225914": {"question": "Which color?", "imageId": "1", "answer": "blue", "types": {"structural": "query"}},
}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps(QUESTIONS))
    return tmp_path


def test_questions_ask_for_a_word_or_phrase(data):
    questions = BENCHMARK.read(data, {})
    assert prompt_text(questions[0]) == (
        "<image_placeholder>\nIs it overcast?\nAnswer the question using a single word or phrase."
    )
    assert [image_names(question) for question in questions] == [["n161313.jpg"], ["2354786.jpg"], ["1.jpg"]]


def test_accuracy_ignores_case_and_a_final_full_stop(data):
    questions = BENCHMARK.read(data, {})
    scores = BENCHMARK.score(questions, answer_in_order(questions, "No.", "the woman", "Blue"), {})
    assert scores["accuracy"] == pytest.approx(200 / 3)
    assert (scores["verify.accuracy"], scores["query.accuracy"]) == (100, 50)


def test_predictions_have_the_official_format(data, tmp_path):
    questions = BENCHMARK.read(data, {})
    BENCHMARK.write_predictions(questions, answer_in_order(questions, "No.", "A Woman", "blue"), tmp_path)
    assert json.loads((tmp_path / "testdev_balanced_predictions.json").read_text()) == [
        {"questionId": "201307251", "prediction": "no"},
        {"questionId": "201640614", "prediction": "a woman"},
        {"questionId": "202225914", "prediction": "blue"},
    ]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("answer", None, r"testdev_balanced_questions.json, entry 201640614: the field answer is missing"),
        ("imageId", "", "entry 201640614: imageId is ''; expected an integer or text"),
        ("question", ["Who?"], "entry 201640614: question is .*; expected text"),
    ],
)
def test_malformed_data_is_reported(data, field, value, message):
    wrong = QUESTIONS | {"201640614": QUESTIONS["201640614"] | {field: value}}
    (data / "testdev_balanced_questions.json").write_text(json.dumps(wrong))
    with pytest.raises(JanusError, match=message):
        BENCHMARK.read(data, {})


def test_a_list_instead_of_an_object_is_reported(data):
    (data / "testdev_balanced_questions.json").write_text("[]")
    with pytest.raises(JanusError, match=r"questions.json is list; expected a JSON object"):
        BENCHMARK.read(data, {})
