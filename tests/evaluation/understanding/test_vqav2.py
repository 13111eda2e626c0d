"""VQA v2, by hand: the normalisation that its page describes, and the mean over leaving one person out."""

import json

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.vqa_answers import normalised, soft_accuracy
from janus_jax.evaluation.understanding.vqav2 import BENCHMARK
from tests.evaluation.asking import answered, pictures_of, text_of

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
def test_answers_are_normalised_as_the_page_says(answer, expected):
    assert normalised(answer) == expected


@pytest.mark.parametrize(
    ("agreeing", "expected"),
    # By hand: with k of ten agreeing, leaving out one of them leaves k - 1, leaving out another leaves k.
    [(0, 0), (1, 9 * 1 / 3 / 10), (2, (2 * 1 / 3 + 8 * 2 / 3) / 10), (3, (3 * 2 / 3 + 7) / 10), (4, 1), (9, 1)],
)
def test_agreement_of_three_others_is_full(agreeing, expected):
    people = ["red"] * agreeing + [f"other {n}" for n in range(10 - agreeing)]
    assert soft_accuracy("red", people) == pytest.approx(expected)


def test_people_are_normalised_where_they_differ():
    assert soft_accuracy("red bus", ["The red bus."] * 4 + ["bus"] * 6) == 1


def test_answers_stand_as_they_are_where_all_people_say_the_same():
    assert soft_accuracy("bus", ["a bus"] * 10) == 0
    assert soft_accuracy("a bus", ["a bus"] * 10) == 1


def entry(number, image, question):
    return {"question_id": number, "image_id": image, "question": question}


def people(number, kind, answers):
    said = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(answers, 1)]
    return {
        "question_id": number,
        "image_id": 42,
        "question_type": "what",
        "answer_type": kind,
        "multiple_choice_answer": answers[0],
        "answers": said,
    }


def put(folder, split, questions, annotations=None):
    content = {"info": {}, "data_type": "mscoco", "questions": questions}
    (folder / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps(content))
    if annotations is not None:
        (folder / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))


QUESTIONS = [entry(42000, 42, "What colour?"), entry(42001, 42, "How many?"), entry(43000, 43, "Is it?")]
ANNOTATIONS = [
    people(42000, "other", ["red"] * 3 + ["dark red"] * 7),
    people(42001, "number", ["2"] * 2 + ["3"] * 8),
    people(43000, "yes/no", ["yes"] * 10),
]


@pytest.fixture
def data(tmp_path):
    put(tmp_path, "val2014", QUESTIONS, ANNOTATIONS)
    put(tmp_path, "test-dev2015", QUESTIONS)
    return tmp_path


def test_scores_are_the_mean_of_soft_accuracies(data):
    questions = BENCHMARK.read(data, VAL)
    scores = BENCHMARK.score(questions, answered(questions, "Red.", "Two", "Yes"), VAL)
    assert scores["val.other"] == pytest.approx(90)
    assert scores["val.number"] == pytest.approx(60)
    assert scores["val.yes/no"] == pytest.approx(100)
    assert scores["val.accuracy"] == pytest.approx(250 / 3)


def test_pictures_are_named_by_coco(data):
    questions = BENCHMARK.read(data, VAL)
    assert pictures_of(questions[0]) == ["COCO_val2014_000000000042.jpg"]
    test = BENCHMARK.read(data, {"split": "test-dev2015"})
    assert test[2].messages[0]["images"][0] == data / "test2015" / "COCO_test2015_000000000043.jpg"
    assert text_of(test[2]).splitlines()[1:] == ["Is it?", "Answer the question using a single word or phrase."]


def test_where_answers_are_secret_there_is_a_submission_and_no_score(data, tmp_path):
    options = {"split": "test-dev2015"}
    questions = BENCHMARK.read(data, options)
    answers = answered(questions, "The red one.", "Two", "Yes")
    assert BENCHMARK.score(questions, answers, options) == {}
    BENCHMARK.write_predictions(questions, answers, tmp_path)
    assert json.loads((tmp_path / "v2_OpenEnded_mscoco_test-dev2015_results.json").read_text()) == [
        {"question_id": 42000, "answer": "red 1"},
        {"question_id": 42001, "answer": "2"},
        {"question_id": 43000, "answer": "yes"},
    ]


MISTAKES = {
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
    "no list": ({}, [], r"questions.json: questions holds dict; a list of objects is expected"),
    "no answers": (QUESTIONS, [people(1, "other", ["x"]) | {"answers": []}], "entry 1: answers is empty"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_data_is_named(data, mistake):
    questions, annotations, words = MISTAKES[mistake]
    put(data, "val2014", questions, annotations)
    with pytest.raises(JanusError, match=words):
        BENCHMARK.read(data, VAL)
