"""Tests of VQA v2: answer normalization and soft accuracy."""

import json

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.vqa_answers import normalize, soft_accuracy
from janus_jax.evaluation.understanding.vqav2 import BENCHMARK
from tests.evaluation.fakes import answer_in_order, image_names, prompt_text

VAL = {"split": "val2014"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("The Red Bus", "red bus"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("the dog's", "dog's"),
        ("12:30", "12:30"),
        ("black/white", "black white"),
        ("black, white", "black white"),
        ("black - white", "black white"),
        ("1,000 people", "1000 people"),
        ("1.5", "1.5"),
        ("u.s.a.", "usa"),
        ("  a\tbig\ncat ", "big cat"),
        ("well", "well"),
    ],
)
def test_answers_are_normalized_as_documented(answer, expected):
    assert normalize(answer) == expected


@pytest.mark.parametrize(
    ("matches", "expected"),
    # With k of ten matches, leaving out one of them leaves k - 1, leaving out another annotator leaves k.
    [(0, 0), (1, 9 * 1 / 3 / 10), (2, (2 * 1 / 3 + 8 * 2 / 3) / 10), (3, (3 * 2 / 3 + 7) / 10), (4, 1), (9, 1)],
)
def test_three_other_matches_give_full_accuracy(matches, expected):
    annotations = ["red"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert soft_accuracy("red", annotations) == pytest.approx(expected)


def test_differing_annotations_are_normalized():
    assert soft_accuracy("red bus", ["The red bus."] * 4 + ["bus"] * 6) == 1


def test_unanimous_annotations_are_compared_without_normalization():
    assert soft_accuracy("bus", ["a bus"] * 10) == 0
    assert soft_accuracy("a bus", ["a bus"] * 10) == 1


def entry(number, image, question):
    return {"question_id": number, "image_id": image, "question": question}


def annotation(number, kind, answers):
    entries = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(answers, 1)]
    return {
        "question_id": number,
        "image_id": 42,
        "question_type": "what",
        "answer_type": kind,
        "multiple_choice_answer": answers[0],
        "answers": entries,
    }


def write_split(folder, split, questions, annotations=None):
    content = {"info": {}, "data_type": "mscoco", "questions": questions}
    (folder / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps(content))
    if annotations is not None:
        (folder / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))


QUESTIONS = [entry(42000, 42, "What color?"), entry(42001, 42, "How many?"), entry(43000, 43, "Is it?")]
ANNOTATIONS = [
    annotation(42000, "other", ["red"] * 3 + ["dark red"] * 7),
    annotation(42001, "number", ["2"] * 2 + ["3"] * 8),
    annotation(43000, "yes/no", ["yes"] * 10),
]


@pytest.fixture
def data(tmp_path):
    write_split(tmp_path, "val2014", QUESTIONS, ANNOTATIONS)
    write_split(tmp_path, "test-dev2015", QUESTIONS)
    return tmp_path


def test_the_score_is_the_mean_soft_accuracy(data):
    questions = BENCHMARK.read(data, VAL)
    scores = BENCHMARK.score(questions, answer_in_order(questions, "Red.", "Two", "Yes"), VAL)
    assert scores["val.other"] == pytest.approx(90)
    assert scores["val.number"] == pytest.approx(60)
    assert scores["val.yes/no"] == pytest.approx(100)
    assert scores["val.accuracy"] == pytest.approx(250 / 3)


def test_image_names_follow_coco(data):
    questions = BENCHMARK.read(data, VAL)
    assert image_names(questions[0]) == ["COCO_val2014_000000000042.jpg"]
    test = BENCHMARK.read(data, {"split": "test-dev2015"})
    assert test[2].messages[0]["images"][0] == data / "test2015" / "COCO_test2015_000000000043.jpg"
    assert prompt_text(test[2]).splitlines()[1:] == ["Is it?", "Answer the question using a single word or phrase."]


def test_a_test_split_has_predictions_but_no_scores(data, tmp_path):
    options = {"split": "test-dev2015"}
    questions = BENCHMARK.read(data, options)
    answers = answer_in_order(questions, "The red one.", "Two", "Yes")
    assert BENCHMARK.score(questions, answers, options) == {}
    BENCHMARK.write_predictions(questions, answers, tmp_path)
    assert json.loads((tmp_path / "v2_OpenEnded_mscoco_test-dev2015_results.json").read_text()) == [
        {"question_id": 42000, "answer": "red 1"},
        {"question_id": 42001, "answer": "2"},
        {"question_id": 43000, "answer": "yes"},
    ]


MALFORMED = {
    "no annotation": (
        QUESTIONS,
        ANNOTATIONS[:2],
        r"questions, entry 3: question_id 43000 has no entry in v2_mscoco_val",
    ),
    "no question": (
        [entry(42000, 2, None)],
        ANNOTATIONS,
        r"questions.json: questions, entry 1: the field question is missing",
    ),
    "not a list": ({}, [], r"questions.json: questions is dict; expected a list of objects"),
    "no answers": (QUESTIONS, [annotation(1, "other", ["x"]) | {"answers": []}], "entry 1: answers is empty"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_data_is_reported(data, case):
    questions, annotations, message = MALFORMED[case]
    write_split(data, "val2014", questions, annotations)
    with pytest.raises(JanusError, match=message):
        BENCHMARK.read(data, VAL)
