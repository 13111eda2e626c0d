"""MMMU, by hand: its parquet files and its scorer, which reads what it can and draws the rest."""

import json
import random

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.mmmu import BENCHMARK
from janus_jax.evaluation.understanding.mmmu_answers import is_right, read_letter, read_values
from tests.evaluation.asking import answered, pictures_of, put_picture, text_of

AUTHORS, OFFICIAL = {"prompt": "authors"}, {"prompt": "official"}
CHOICES = {"A": "$6", "B": "$7 in cash", "C": "A red house", "D": "None"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("'B'", "B"),
        ("The answer is (C), not B", "C"),
        ("(A) or rather (D)", "D"),
        ("B or C", "C"),
        ("I think that it must be $7 in cash", "B"),
        ("I see a Red House that costs, all in all, $6", "A"),
    ],
)
def test_letters_are_read_in_the_scorers_order(answer, expected):
    assert read_letter(answer, CHOICES, random.Random(0)) == expected


def test_what_cannot_be_read_is_drawn_as_the_scorer_draws_it():
    # Five words or fewer are not searched for an option's text.
    official = random.Random(42)
    expected = [official.choice(["A", "B", "C", "D"]) for _ in range(6)]
    chance = random.Random(42)
    assert [read_letter("a red house", CHOICES, chance) for _ in range(6)] == expected


@pytest.mark.parametrize(
    ("answer", "values"),
    [
        ("The answer is 12.5%", {"12.5%", 12.5}),
        ("So x = 1,234.567", {1234.57, 1234.0, 234.57}),
        ("1.5e3", {1500.0, 1.0, 3.0}),
        ("Red", {"red"}),
        ("x", {" x", "x "}),
        ("It is blue\nThus the result is 8 cm.", {"blue", "8 cm", 8.0}),
    ],
)
def test_values_of_open_answers_are_ends_that_tell_and_numbers(answer, values):
    assert read_values(answer) == values


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("The final answer is 8.", ["8"], True),
        ("8.004", ["8"], True),
        ("8.01", ["8"], False),
        ("It is a red house", ["Red House"], True),
        ("-2", ["2", "-2"], True),
        ("x", ["x"], True),
        ("maximum", ["x"], False),
        ("Unknown", ["8"], False),
    ],
)
def test_open_answers_are_right_by_text_within_or_equal_numbers(answer, expected, right):
    assert is_right(answer, expected) is right


@pytest.fixture
def pictures(tmp_path):
    return [put_picture(tmp_path / "pictures" / f"{n}.png", n).read_bytes() for n in range(2)]


def row(name, **more):
    return {
        "id": f"validation_{name}",
        "question": "<image 1> Each of these is <image 2>. What is it? <image 1>",
        "options": "['$6', \"it's $7\", '<image 2>']",
        "explanation": "",
        "answer": "B",
        "img_type": "['Tables']",
        "topic_difficulty": "Medium",
        "question_type": "multiple-choice",
        "subfield": "Managerial",
    } | more


def rows(pictures):
    image = [{"bytes": picture, "path": f"{n}.png"} for n, picture in enumerate(pictures)]
    return {
        "Math": [
            row("Math_1", image_1=image[1], question="Add <image 1>.", question_type="open", answer="['8', 'eight']")
        ],
        "Accounting": [
            row("Accounting_1", image_1=image[0], image_2=image[1]),
            row("Accounting_2", image_1=image[0], question="Which?", answer="A"),
        ],
    }


def put_parquet(folder, content):
    table = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    for subject, entries in content.items():
        (folder / subject).mkdir(parents=True, exist_ok=True)
        file = folder / subject / "validation-00000-of-00001.parquet"
        names = sorted({name for entry in entries for name in entry})
        columns = {name: [entry.get(name) for entry in entries] for name in names}
        pyarrow.parquet.write_table(table.table(columns), file)
    return folder


@pytest.fixture
def data(tmp_path, pictures):
    return put_parquet(tmp_path / "MMMU", rows(pictures))


def test_the_authors_put_all_pictures_first(data, pictures):
    questions = BENCHMARK.read(data, AUTHORS)
    assert [question.id for question in questions] == [
        "validation_Accounting_1",
        "validation_Accounting_2",
        "validation_Math_1",
    ]
    assert text_of(questions[0]) == (
        "<image_placeholder><image_placeholder>\n<image 1> Each of these is <image 2>. What is it? <image 1>\n"
        "A. $6\nB. it's $7\nC. <image 2>\n\nAnswer with the option's letter from the given choices directly."
    )
    assert pictures_of(questions[0]) == pictures
    assert text_of(questions[2]) == "<image_placeholder>\nAdd <image 1>.\nAnswer the question directly."


def test_the_official_prompt_has_pictures_in_their_places(data, pictures):
    questions = BENCHMARK.read(data, OFFICIAL)
    assert text_of(questions[0]) == (
        "<image_placeholder> Each of these is <image_placeholder>. What is it? <image 1>\n"
        "(A) $6\n(B) it's $7\n(C) <image 2>\n\nAnswer with the option's letter from the given choices directly."
    )
    assert text_of(questions[1]).startswith("<image_placeholder>Which?\n(A) $6")
    assert text_of(questions[2]) == ("Add <image_placeholder>.\nAnswer the question using a single word or phrase.")
    assert pictures_of(questions[0]) == pictures


def test_accuracy_is_over_all_questions_and_by_subject(data):
    questions = BENCHMARK.read(data, AUTHORS)
    scores = BENCHMARK.score(questions, answered(questions, "(B)", "C", "It is eight."), AUTHORS)
    assert scores["accuracy"] == pytest.approx(200 / 3)
    assert (scores["subject.Accounting"], scores["subject.Math"]) == (50, 100)


def test_predictions_are_letters_and_open_answers_by_id(data, tmp_path):
    questions = BENCHMARK.read(data, AUTHORS)
    BENCHMARK.write_predictions(questions, answered(questions, "(B)", "Who knows", "It is eight."), tmp_path)
    assert json.loads((tmp_path / "mmmu_val.json").read_text()) == {
        "validation_Accounting_1": "B",
        "validation_Accounting_2": random.Random(42).choice("ABC"),
        "validation_Math_1": "It is eight.",
    }


def test_json_holds_the_same_with_paths(tmp_path, pictures):
    entry = row("Art_1", image_1="0.png", options=["One", "Two"])
    file = tmp_path / "pictures" / "mmmu_validation.json"
    file.write_text(json.dumps([entry]))
    (question,) = BENCHMARK.read(tmp_path, AUTHORS)
    assert question.choices == {"A": "One", "B": "Two"}
    assert pictures_of(question) == ["0.png"]


MISTAKES = {
    "options that are no list": ({"options": "six, seven"}, "options is 'six, seven'; a list as Python writes it"),
    "one option": ({"options": "['x']"}, "options holds 1 options"),
    "an answer that is none": ({"answer": "F"}, "answer is 'F'; one of A, B, C is expected"),
    "another type": ({"question_type": "essay"}, "question_type is 'essay'; one of multiple-choice, open"),
    "no picture": ({"image_1": None}, r"the field image_1 is missing \(a picture is expected\)"),
    "a strange id": ({"id": "test_Art_1"}, "id is 'test_Art_1'; validation_SUBJECT_NUMBER is expected"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_data_is_named(tmp_path, mistake):
    changes, words = MISTAKES[mistake]
    (tmp_path / "validation.jsonl").write_text(json.dumps(row("Art_1", image_1="0.png") | changes) + "\n")
    with pytest.raises(JanusError, match=f"validation.jsonl, line 1: {words}"):
        BENCHMARK.read(tmp_path, AUTHORS)


def test_no_files_and_a_damaged_one_are_named(tmp_path):
    with pytest.raises(JanusError, match=r"holds no \*validation\*.parquet"):
        BENCHMARK.read(tmp_path, AUTHORS)
    pytest.importorskip("pyarrow")
    (tmp_path / "validation-0.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(JanusError, match=r"validation-0.parquet is damaged"):
        BENCHMARK.read(tmp_path, AUTHORS)
