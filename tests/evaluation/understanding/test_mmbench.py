"""Tests of MMBench: tables with images in base64, rotations of options, and the three accuracies."""

import base64
import csv

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.mmbench import BENCHMARK
from tests.evaluation.fakes import answer_in_order, image_names, prompt_text, write_image

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
    questions = BENCHMARK.read(data, {})
    assert prompt_text(questions[0]) == (
        "<image_placeholder>\nHint: It is\nbig.\nWhat is\tit?\nA. Boat\nB. Car\nC. Dog\nD. Sun\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert prompt_text(questions[4]).startswith("<image_placeholder>\nWhich?\nA. Left\nB. Right\n\n")
    assert image_names(questions[4]) == [images[1]]


def test_rotations_move_each_option_to_the_next_letter(data):
    questions = BENCHMARK.read(data, {})
    assert [question.id for question in questions] == ["7", "1000007", "2000007", "3000007", "8", "1000008"]
    assert ["".join(text[0] for text in question.choices.values()) for question in questions] == [
        *("BCDS", "SBCD", "DSBC", "CDSB"),
        *("LR", "RL"),
    ]
    assert [question.answer for question in questions] == ["C", "D", "A", "B", "A", "B"]
    assert "Hint: It is\nbig.\nWhat is\tit?\nA. Sun\nB. Boat\nC. Car\nD. Dog" in prompt_text(questions[1])


# The first four options occur in MMBench's table of July 2023. In this table, the last option of 53 of 1,176 questions
# keeps its letter, so it has 4,377 rows.
@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (["cry", "laugh", "get mad", "both A,B, and C"], 3),
        (["left", "right", "top", "All above are not right"], 3),
        (["acid", "base", "salt", "None of these options are correct."], 3),
        (["An ox", "A woman with an umbrella", "A pan", "A huge heard of sheep are all scattered together."], 3),
        (["red", "blue", "None"], 2),
        (["red", "None", "All"], 2),
        (["red", "blue", "None", "All"], 2),
        (["All", "red", "blue"], 3),
        (["red", "both A and B"], 2),
        (["red", "blue", "green", "both A and C"], 4),
        (["red", "blue", "green", "Allowed"], 4),
        (["All", "None"], 2),
    ],
)
def test_a_last_option_about_the_others_keeps_its_letter(tmp_path, images, options, rows):
    row = {"index": 9, "question": "Which?", "answer": "A", "image": base64.b64encode(images[0]).decode()}
    data = write_table(tmp_path / "own", [row | dict(zip("ABCD", options, strict=False))])
    rotated = [list(question.choices.values()) for question in BENCHMARK.read(data, {})]
    assert rotated == [
        [*(options[(index - shift) % rows] for index in range(rows)), *options[rows:]] for shift in range(rows)
    ]
    assert [question.answer for question in BENCHMARK.read(data, {})] == list("ABCD"[:rows])


def test_scores_over_all_rotations_the_original_order_and_whole_groups(data):
    questions = BENCHMARK.read(data, {})
    # The first question is answered correctly in all rotations. The answer to the second is always A.
    answers = answer_in_order(questions, "C. Dog", "D", "A", "B", "A", "A")
    assert BENCHMARK.score(questions, answers, {}) == {
        "vanilla": pytest.approx(500 / 6),
        "original_order": 100,
        "circular": 50,
        "category.object": 100,
        "category.place": 50,
    }
    assert next(iter(BENCHMARK.published)) == "vanilla"


def test_a_table_with_rotations_is_used_unchanged(tmp_path, images):
    image = base64.b64encode(images[0]).decode()
    rotated = {"index": 1000008, "question": "Which?", "A": "Right", "B": "Left", "answer": "B", "image": "8"}
    data = write_table(tmp_path / "own", [ROWS[1] | {"answer": "A", "image": image}, rotated])
    questions = BENCHMARK.read(data, {})
    assert [question.id for question in questions] == ["8", "1000008"]
    assert image_names(questions[1]) == [images[0]]
    assert BENCHMARK.score(questions, answer_in_order(questions, "A", "A"), {}) == {
        "vanilla": 50,
        "original_order": 100,
        "circular": 0,
    }


def row(index, image):
    return {"index": index, "question": "Which?", "A": "Left", "B": "Right", "answer": "A", "image": image}


@pytest.mark.parametrize("order", [(8, 9, 10), (10, 9, 8), (9, 10, 8)])
def test_the_image_of_another_row_is_found_in_any_order(tmp_path, images, order):
    rows = {8: row(8, base64.b64encode(images[0]).decode()), 9: row(9, "8"), 10: row(10, "9.0")}
    questions = BENCHMARK.read(write_table(tmp_path, [rows[index] for index in order]), {})
    assert [question.number for question in questions[::2]] == list(order)
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
        BENCHMARK.read(write_table(tmp_path, rows), {})


def test_a_table_without_answers_has_predictions_but_no_scores(tmp_path, images):
    image = {"image": base64.b64encode(images[0]).decode()}
    data = write_table(tmp_path / "test", [row | image for row in ROWS])
    questions = BENCHMARK.read(data, {})
    answers = answer_in_order(questions, "C", "D", "A", "B", "Right", "Left")
    assert BENCHMARK.score(questions, answers, {}) == {}
    BENCHMARK.write_predictions(questions, answers, tmp_path)
    with (tmp_path / "mmbench.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["index"], row["A"], row["D"], row["prediction"]) for row in rows] == [
        ("7", "Boat", "Sun", "C"),
        ("1000007", "Sun", "Dog", "D"),
        ("2000007", "Dog", "Car", "A"),
        ("3000007", "Car", "Boat", "B"),
        ("8", "Left", "", "Right"),
        ("1000008", "Right", "", "Left"),
    ]
