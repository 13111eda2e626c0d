"""MMBench, by hand: its table with pictures in base64, vanilla and circular."""

import base64
import csv

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.mmbench import BENCHMARK
from tests.evaluation.asking import answered, pictures_of, put_picture, text_of

VANILLA, CIRCULAR = {"circular": "false"}, {"circular": "true"}
FIELDS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "split")
ROWS = [
    {"index": 7, "question": "What is\tit?", "hint": "It is\nbig.", "A": "Boat", "B": "Car", "C": "Dog", "D": "Sun"},
    {"index": 8, "question": "Which?", "A": "Left", "B": "Right"},
]
ANSWERS = [{"answer": "C", "category": "object"}, {"answer": "A", "category": "place"}]


@pytest.fixture
def pictures(tmp_path):
    return [put_picture(tmp_path / "pictures" / f"{n}.png", n).read_bytes() for n in range(2)]


def put(folder, rows):
    folder.mkdir(exist_ok=True)
    with (folder / "MMBench_DEV_EN.tsv").open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS, delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture
def data(tmp_path, pictures):
    images = [{"image": base64.b64encode(picture).decode()} for picture in pictures]
    return put(tmp_path / "data", [row | more | image for row, more, image in zip(ROWS, ANSWERS, images, strict=True)])


def test_questions_are_asked_with_hint_and_options(data, pictures):
    questions = BENCHMARK.read(data, VANILLA)
    assert text_of(questions[0]) == (
        "<image_placeholder>\nHint: It is\nbig.\nWhat is\tit?\nA. Boat\nB. Car\nC. Dog\nD. Sun\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert text_of(questions[1]).startswith("<image_placeholder>\nWhich?\nA. Left\nB. Right\n\n")
    assert pictures_of(questions[1]) == [pictures[1]]


def test_vanilla_asks_once_and_counts_what_is_right(data):
    questions = BENCHMARK.read(data, VANILLA)
    scores = BENCHMARK.score(questions, answered(questions, "C", "B. Right"), VANILLA)
    assert scores == {"vanilla": 50, "category.object": 100, "category.place": 0}


def test_circular_asks_every_rotation(data):
    questions = BENCHMARK.read(data, CIRCULAR)
    assert [question.id for question in questions] == ["7", "1000007", "2000007", "3000007", "8", "1000008"]
    assert [question.choices["A"] for question in questions[:4]] == ["Boat", "Car", "Dog", "Sun"]
    assert [question.choices[question.answer] for question in questions] == ["Dog"] * 4 + ["Left"] * 2
    assert [question.answer for question in questions] == ["C", "B", "A", "D", "A", "B"]
    assert "Hint: It is\nbig.\nWhat is\tit?\nA. Car\nB. Dog\nC. Sun\nD. Boat" in text_of(questions[1])


def test_circular_counts_questions_that_are_right_in_all_rotations(data):
    questions = BENCHMARK.read(data, CIRCULAR)
    # The first knows, the second always says A.
    answers = answered(questions, "C", "B", "A", "D", "A", "A")
    assert BENCHMARK.score(questions, answers, CIRCULAR) == {
        "vanilla": 100,
        "circular": 50,
        "category.object": 100,
        "category.place": 0,
    }


def test_a_table_with_rotations_of_its_own_is_taken_as_it_is(tmp_path, pictures):
    image = base64.b64encode(pictures[0]).decode()
    turned = {"index": 1000008, "question": "Which?", "A": "Right", "B": "Left", "answer": "B", "image": "8"}
    data = put(tmp_path / "own", [ROWS[1] | {"answer": "A", "image": image}, turned])
    assert [question.id for question in BENCHMARK.read(data, VANILLA)] == ["8"]
    questions = BENCHMARK.read(data, CIRCULAR)
    assert [question.id for question in questions] == ["8", "1000008"]
    assert pictures_of(questions[1]) == [pictures[0]]
    assert BENCHMARK.score(questions, answered(questions, "A", "A"), CIRCULAR) == {"vanilla": 100, "circular": 0}


def test_where_answers_are_secret_there_are_predictions_and_no_score(tmp_path, pictures):
    image = {"image": base64.b64encode(pictures[0]).decode()}
    data = put(tmp_path / "test", [row | image for row in ROWS])
    questions = BENCHMARK.read(data, VANILLA)
    answers = answered(questions, "C", "Right")
    assert BENCHMARK.score(questions, answers, VANILLA) == {}
    BENCHMARK.write_predictions(questions, answers, tmp_path)
    with (tmp_path / "mmbench.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["index"], row["A"], row["D"], row["prediction"]) for row in rows] == [
        ("7", "Boat", "Sun", "C"),
        ("8", "Left", "", "Right"),
    ]


MISTAKES = {
    "no options": ({"B": "", "C": "", "D": ""}, "row 1: the fields A, B ... hold 1 options"),
    "no picture": ({"image": ""}, r"row 1: the field image is missing \(a picture in base64"),
    "no base64": ({"image": "a picture!"}, "row 1: image is 'a picture!'; a picture in base64 is expected"),
    "an answer that is none": ({"answer": "E"}, "row 1: answer is 'E'; one of A, B, C, D is expected"),
    "an index that is none": ({"index": "first"}, "row 1: index is 'first'; a whole number is expected"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_data_is_named(tmp_path, pictures, mistake):
    changes, words = MISTAKES[mistake]
    row = ROWS[0] | ANSWERS[0] | {"image": base64.b64encode(pictures[0]).decode()}
    with pytest.raises(JanusError, match=f"MMBench_DEV_EN.tsv, {words}"):
        BENCHMARK.read(put(tmp_path / "wrong", [row | changes]), VANILLA)


def test_two_tables_are_refused(data):
    (data / "other.tsv").write_text("index\n")
    with pytest.raises(JanusError, match=r"holds 2 tables \(MMBench_DEV_EN.tsv, other.tsv\); one"):
        BENCHMARK.read(data, VANILLA)
