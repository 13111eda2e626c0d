"""GQA, by hand."""

import json

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.gqa import BENCHMARK
from tests.evaluation.asking import answered, pictures_of, text_of

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
    "202225914": {"question": "Which colour?", "imageId": "1", "answer": "blue", "types": {"structural": "query"}},
}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps(QUESTIONS))
    return tmp_path


def test_questions_are_asked_for_a_word_or_phrase(data):
    questions = BENCHMARK.read(data, {})
    assert text_of(questions[0]) == (
        "<image_placeholder>\nIs it overcast?\nAnswer the question using a single word or phrase."
    )
    assert [pictures_of(question) for question in questions] == [["n161313.jpg"], ["2354786.jpg"], ["1.jpg"]]


def test_answers_are_right_letter_by_letter_but_for_case_and_a_full_stop(data):
    questions = BENCHMARK.read(data, {})
    scores = BENCHMARK.score(questions, answered(questions, "No.", "the woman", "Blue"), {})
    assert scores["accuracy"] == pytest.approx(200 / 3)
    assert (scores["verify.accuracy"], scores["query.accuracy"]) == (100, 50)


def test_predictions_are_a_list_as_the_scorer_reads_it(data, tmp_path):
    questions = BENCHMARK.read(data, {})
    BENCHMARK.write_predictions(questions, answered(questions, "No.", "A Woman", "blue"), tmp_path)
    assert json.loads((tmp_path / "testdev_balanced_predictions.json").read_text()) == [
        {"questionId": "201307251", "prediction": "no"},
        {"questionId": "201640614", "prediction": "a woman"},
        {"questionId": "202225914", "prediction": "blue"},
    ]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("answer", None, r"testdev_balanced_questions.json, entry 201640614: the field answer is missing"),
        ("imageId", "", "entry 201640614: imageId is ''; a whole number or text is expected"),
        ("question", ["Who?"], "entry 201640614: question is .*; text is expected"),
    ],
)
def test_a_mistake_in_the_data_is_named(data, field, value, words):
    wrong = QUESTIONS | {"201640614": QUESTIONS["201640614"] | {field: value}}
    (data / "testdev_balanced_questions.json").write_text(json.dumps(wrong))
    with pytest.raises(JanusError, match=words):
        BENCHMARK.read(data, {})


def test_a_list_in_place_of_the_object_is_named(data):
    (data / "testdev_balanced_questions.json").write_text("[]")
    with pytest.raises(JanusError, match=r"questions.json holds list; a json object is expected"):
        BENCHMARK.read(data, {})
