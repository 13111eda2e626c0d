"""Tests of MMBench: tables with images in base64, and the vanilla and circular scores."""

import base64
import csv

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.mmbench import BENCHMARK
from tests.evaluation.fakes import answer_in_order, image_names, prompt_text, write_image

VANILLA, CIRCULAR = {"circular": "false"}, {"circular": "true"}
FIELDS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "split")
ROWS = [
    {"index": 7, "question": "What is\tit?", "hint": "It is\nbig.", "A": "Boat", "B": "Car", "C": "Dog", "D": "Sun"},
    {"index": 8, "question": "Which?", "A": "Left", "B": "Right"},
]
ANSWERS = [{"answer": "C", "category": "object"}, {"answer": "A", "category": "place"}]


@pytest.fixture
def images(tmp_path):
    return [write_image(tmp_path / "images" / f"{n}.png", n).read_bytes() for n in range(2)]


def write_table(folder, rows):
    folder.mkdir(exist_ok=True)
    with (folder / "MMBench_DEV_EN.tsv").open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS, delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture
def data(tmp_path, images):
    images = [{"image": base64.b64encode(image).decode()} for image in images]
    return write_table(
        tmp_path / "data", [row | more | image for row, more, image in zip(ROWS, ANSWERS, images, strict=True)]
    )


def test_prompts_contain_hint_and_options(data, images):
    questions = BENCHMARK.read(data, VANILLA)
    assert prompt_text(questions[0]) == (
        "<image_placeholder>\nHint: It is\nbig.\nWhat is\tit?\nA. Boat\nB. Car\nC. Dog\nD. Sun\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert prompt_text(questions[1]).startswith("<image_placeholder>\nWhich?\nA. Left\nB. Right\n\n")
    assert image_names(questions[1]) == [images[1]]


def test_vanilla_score_is_the_share_of_correct_answers(data):
    questions = BENCHMARK.read(data, VANILLA)
    scores = BENCHMARK.score(questions, answer_in_order(questions, "C", "B. Right"), VANILLA)
    assert scores == {"vanilla": 50, "category.object": 100, "category.place": 0}


def test_circular_reads_every_rotation(data):
    questions = BENCHMARK.read(data, CIRCULAR)
    assert [question.id for question in questions] == ["7", "1000007", "2000007", "3000007", "8", "1000008"]
    assert [question.choices["A"] for question in questions[:4]] == ["Boat", "Car", "Dog", "Sun"]
    assert [question.choices[question.answer] for question in questions] == ["Dog"] * 4 + ["Left"] * 2
    assert [question.answer for question in questions] == ["C", "B", "A", "D", "A", "B"]
    assert "Hint: It is\nbig.\nWhat is\tit?\nA. Car\nB. Dog\nC. Sun\nD. Boat" in prompt_text(questions[1])


def test_circular_counts_questions_with_all_rotations_correct(data):
    questions = BENCHMARK.read(data, CIRCULAR)
    # The first question is answered correctly, the second always with A.
    answers = answer_in_order(questions, "C", "B", "A", "D", "A", "A")
    assert BENCHMARK.score(questions, answers, CIRCULAR) == {
        "vanilla": 100,
        "circular": 50,
        "category.object": 100,
        "category.place": 0,
    }


def test_a_table_with_rotations_is_used_unchanged(tmp_path, images):
    image = base64.b64encode(images[0]).decode()
    rotated = {"index": 1000008, "question": "Which?", "A": "Right", "B": "Left", "answer": "B", "image": "8"}
    data = write_table(tmp_path / "own", [ROWS[1] | {"answer": "A", "image": image}, rotated])
    assert [question.id for question in BENCHMARK.read(data, VANILLA)] == ["8"]
    questions = BENCHMARK.read(data, CIRCULAR)
    assert [question.id for question in questions] == ["8", "1000008"]
    assert image_names(questions[1]) == [images[0]]
    assert BENCHMARK.score(questions, answer_in_order(questions, "A", "A"), CIRCULAR) == {"vanilla": 100, "circular": 0}


def row(index, image):
    return {"index": index, "question": "Which?", "A": "Left", "B": "Right", "answer": "A", "image": image}


@pytest.mark.parametrize("order", [(8, 9, 10), (10, 9, 8), (9, 10, 8)])
def test_the_image_of_another_row_is_found_in_any_order(tmp_path, images, order):
    rows = {8: row(8, base64.b64encode(images[0]).decode()), 9: row(9, "8"), 10: row(10, "9.0")}
    questions = BENCHMARK.read(write_table(tmp_path, [rows[index] for index in order]), VANILLA)
    assert [question.number for question in questions] == list(order)
    assert all(image_names(question) == [images[0]] for question in questions)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(8, "9"), row(9, "8")], r"row 1: image is the index 8, which leads to no row with an image"),
        ([row(8, "8")], r"row 1: image is the index 8, which leads"),
        ([row(8, "7")], r"row 1: image is the index 7, which leads"),
        ([row(8, "9"), row(9, "no image!")], r"row 2: image is 'no image!'; expected an image in base64"),
    ],
)
def test_an_index_that_leads_to_no_image_is_reported(tmp_path, rows, message):
    with pytest.raises(JanusError, match=message):
        BENCHMARK.read(write_table(tmp_path, rows), VANILLA)


def test_a_table_without_answers_has_predictions_but_no_scores(tmp_path, images):
    image = {"image": base64.b64encode(images[0]).decode()}
    data = write_table(tmp_path / "test", [row | image for row in ROWS])
    questions = BENCHMARK.read(data, VANILLA)
    answers = answer_in_order(questions, "C", "Right")
    assert BENCHMARK.score(questions, answers, VANILLA) == {}
    BENCHMARK.write_predictions(questions, answers, tmp_path)
    with (tmp_path / "mmbench.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["index"], row["A"], row["D"], row["prediction"]) for row in rows] == [
        ("7", "Boat", "Sun", "C"),
        ("8", "Left", "", "Right"),
    ]
