"""Tests of MMMU: parquet and JSON files, prompts, and the two matchers of answers."""

import json
import random

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.mmmu import BENCHMARK
from janus_jax.evaluation.understanding.mmmu_answers import is_correct, parse_letter, parse_values
from tests.evaluation.fakes import answer_in_order, image_names, prompt_text, write_image

AUTHORS, OFFICIAL = {"prompt": "authors"}, {"prompt": "official"}
CLOSED = {"question_type": "multiple-choice", "options": "['One', 'Two', 'Three', 'Four']", "answer": "B"}
OPEN = {"question_type": "open", "answer": "8"}
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
def test_letters_are_parsed_as_by_the_official_scorer(answer, expected):
    assert parse_letter(answer, CHOICES, random.Random(0)) == expected


def test_answers_without_a_letter_get_the_official_random_letter():
    # Answers of at most five words are not searched for an option's text.
    official = random.Random(42)
    expected = [official.choice(["A", "B", "C", "D"]) for _ in range(6)]
    rng = random.Random(42)
    assert [parse_letter("a red house", CHOICES, rng) for _ in range(6)] == expected


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
def test_open_answers_are_parsed_into_results_and_numbers(answer, values):
    assert parse_values(answer) == values


@pytest.mark.parametrize(
    ("answer", "expected", "correct"),
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
def test_open_answers_match_by_contained_text_or_equal_number(answer, expected, correct):
    assert is_correct(answer, expected) is correct


@pytest.fixture
def images(tmp_path):
    return [write_image(tmp_path / "images" / f"{n}.png", n).read_bytes() for n in range(2)]


def row(name, **more):
    return {
        "id": f"validation_{name}",
        "question": "<image 1> Each of these is <image 2>. What is it? <image 1>",
        "options": "['$6', \"it's $7\", '<image 2>']",
        "answer": "B",
        "question_type": "multiple-choice",
    } | more


def rows(images):
    image = [{"bytes": content, "path": f"{n}.png"} for n, content in enumerate(images)]
    return {
        "Math": [
            row("Math_1", image_1=image[1], question="Add <image 1>.", question_type="open", answer="['8', 'eight']")
        ],
        "Accounting": [
            row("Accounting_1", image_1=image[0], image_2=image[1]),
            row("Accounting_2", image_1=image[0], question="Which?", answer="A"),
        ],
    }


def write_parquet(folder, content):
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
def data(tmp_path, images):
    return write_parquet(tmp_path / "MMMU", rows(images))


def test_the_authors_prompt_has_all_images_first(data, images):
    questions = BENCHMARK.read(data, AUTHORS)
    assert [question.id for question in questions] == [
        "validation_Accounting_1",
        "validation_Accounting_2",
        "validation_Math_1",
    ]
    assert prompt_text(questions[0]) == (
        "<image_placeholder><image_placeholder>\n<image 1> Each of these is <image 2>. What is it? <image 1>\n"
        "A. $6\nB. it's $7\nC. <image 2>\n\nAnswer with the option's letter from the given choices directly."
    )
    assert image_names(questions[0]) == images
    assert prompt_text(questions[2]) == "<image_placeholder>\nAdd <image 1>.\nAnswer the question directly."


def test_the_official_prompt_inserts_images_at_their_mentions(data, images):
    questions = BENCHMARK.read(data, OFFICIAL)
    assert prompt_text(questions[0]) == (
        "<image_placeholder> Each of these is <image_placeholder>. What is it? <image 1>\n"
        "(A) $6\n(B) it's $7\n(C) <image 2>\n\nAnswer with the option's letter from the given choices directly."
    )
    assert prompt_text(questions[1]).startswith("<image_placeholder>Which?\n(A) $6")
    assert prompt_text(questions[2]) == ("Add <image_placeholder>.\nAnswer the question using a single word or phrase.")
    assert image_names(questions[0]) == images


def test_accuracy_is_reported_per_matcher_in_total_and_by_subject(data):
    questions = BENCHMARK.read(data, AUTHORS)
    scores = BENCHMARK.score(questions, answer_in_order(questions, "(B)", "C", "It is eight."), AUTHORS)
    # VLMEvalKit compares an open answer with the whole list of expected answers.
    assert scores == pytest.approx(
        {
            "vlmevalkit.accuracy": 100 / 3,
            "official.accuracy": 200 / 3,
            "vlmevalkit.Accounting": 50,
            "vlmevalkit.Math": 0,
            "official.Accounting": 50,
            "official.Math": 100,
        }
    )
    assert list(BENCHMARK.published) == ["vlmevalkit.accuracy"]


# The expected values are those of the official parser, and of VLMEvalKit's evaluation without a language model.
@pytest.mark.parametrize(
    ("fields", "answer", "vlmevalkit", "official"),
    [
        (CLOSED, "B", True, True),
        (CLOSED, "(A) is wrong, (B) is right", False, True),
        (CLOSED, "A chart. The answer is (B)", False, True),
        (CLOSED, "Two", True, False),
        (CLOSED, "B.\nBecause A is too small", False, False),
        (OPEN, "8", True, True),
        (OPEN, "The final answer is 8.", True, True),
        (OPEN, "8.004", True, True),
        (OPEN, "18", True, False),
        (OPEN, "eight", False, False),
        (OPEN, "A value of 7", True, False),
        (OPEN, "B", False, False),
        (OPEN | {"answer": "B"}, "B", True, True),
        (OPEN | {"answer": "B"}, "Step b", False, True),
        (OPEN | {"answer": "['8', 'eight']"}, "8", False, True),
        (OPEN | {"answer": "['8', 'eight']"}, "['8', 'eight']", True, True),
    ],
)
def test_matchers_decide_as_their_originals(tmp_path, fields, answer, vlmevalkit, official):
    write_image(tmp_path / "0.png")
    entry = {"id": "validation_Art_1", "question": "Which?", "image_1": "0.png"} | fields
    (tmp_path / "validation.json").write_text(json.dumps([entry]))
    questions = BENCHMARK.read(tmp_path, AUTHORS)
    scores = BENCHMARK.score(questions, answer_in_order(questions, answer), AUTHORS)
    assert (scores["vlmevalkit.accuracy"], scores["official.accuracy"]) == (100 * vlmevalkit, 100 * official)


def test_predictions_have_the_official_format(data, tmp_path):
    questions = BENCHMARK.read(data, AUTHORS)
    BENCHMARK.write_predictions(questions, answer_in_order(questions, "(B)", "Who knows", "It is eight."), tmp_path)
    assert json.loads((tmp_path / "mmmu_val.json").read_text()) == {
        "validation_Accounting_1": "B",
        "validation_Accounting_2": random.Random(42).choice("ABC"),
        "validation_Math_1": "It is eight.",
    }


def test_json_files_contain_image_paths(tmp_path, images):
    entry = row("Art_1", image_1="0.png", options=["One", "Two"])
    file = tmp_path / "images" / "mmmu_validation.json"
    file.write_text(json.dumps([entry]))
    (question,) = BENCHMARK.read(tmp_path, AUTHORS)
    assert question.choices == {"A": "One", "B": "Two"}
    assert image_names(question) == ["0.png"]


def test_a_damaged_parquet_file_is_reported(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "validation-0.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(JanusError, match=r"validation-0.parquet is damaged"):
        BENCHMARK.read(tmp_path, AUTHORS)
