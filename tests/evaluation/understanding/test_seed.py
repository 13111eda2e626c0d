"""Tests of SEED-Bench, and of the parser for multiple-choice answers."""

import json

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.prompts import parse_choice
from janus_jax.evaluation.understanding.seed import BENCHMARK
from tests.evaluation.fakes import answer_in_order, image_names, prompt_text

OPTIONS = {"A": "One", "B": "Two dogs", "C": "Three", "D": "Four"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("B. Two dogs", "B"),
        ("The answer is D.", "D"),
        ("A", "A"),
        ("A man with three hats", "C"),
        ("There are two dogs", "B"),
        ("A or B", ""),
        ("B, C or D", ""),
        ("A is better than B", ""),
        ("Who knows?", ""),
        ("", ""),
    ],
)
def test_the_chosen_letter_is_parsed(answer, expected):
    assert parse_choice(answer, OPTIONS) == expected


def question(number, kind, answer, **more):
    return {
        "answer": answer,
        "choice_a": "One",
        "choice_b": "Two",
        "choice_c": "Three",
        "choice_d": 4,
        "data_id": f"145442{number}_2591111986",
        "data_type": "image",
        "question": f"How many towels {number}?",
        "question_id": f"10166{number}",
        "question_type_id": kind,
    } | more


QUESTIONS = [question(1, 5, "A"), question(2, 5, "D"), question(3, 1, "B"), question(4, 10, "C", data_type="video")]
KINDS = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}


def write_file(folder, questions):
    (folder / "SEED-Bench.json").write_text(json.dumps({"questions": questions, "question_type": KINDS}))


@pytest.fixture
def data(tmp_path):
    write_file(tmp_path, QUESTIONS)
    return tmp_path


def test_only_questions_about_images_are_read(data):
    questions = BENCHMARK.read(data, {})
    assert [question.id for question in questions] == ["101661", "101662", "101663"]
    assert prompt_text(questions[0]) == (
        "<image_placeholder>\nHow many towels 1?\nA. One\nB. Two\nC. Three\nD. 4\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert image_names(questions[0]) == ["1454421_2591111986"]


def test_accuracy_is_reported_in_total_and_by_type(data):
    questions = BENCHMARK.read(data, {})
    scores = BENCHMARK.score(questions, answer_in_order(questions, "A", "C", "B. Two"), {})
    assert scores["accuracy"] == pytest.approx(200 / 3)
    assert scores["Instances Counting.accuracy"] == 50
    assert scores["Scene Understanding.accuracy"] == 100


def test_predictions_have_the_official_format(data, tmp_path):
    questions = BENCHMARK.read(data, {})
    BENCHMARK.write_predictions(questions, answer_in_order(questions, "A", "Four", "Who knows"), tmp_path)
    lines = (tmp_path / "seed_image.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"question_id": "101661", "prediction": "A"},
        {"question_id": "101662", "prediction": ""},
        {"question_id": "101663", "prediction": ""},
    ]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("choice_c", None, "the field choice_c is missing"),
        ("answer", "E", "answer is 'E'; expected one of A, B, C, D"),
        ("data_id", ["a", "b"], "data_id is .*; expected the name of an image"),
        ("data_type", "sound", "data_type is 'sound'; expected one of image, video"),
    ],
)
def test_malformed_data_is_reported(data, field, value, message):
    write_file(data, [QUESTIONS[0], QUESTIONS[1] | {field: value}])
    with pytest.raises(JanusError, match=f"SEED-Bench.json: questions, entry 2: {message}"):
        BENCHMARK.read(data, {})
