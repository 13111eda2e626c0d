"""Tests of MME: both layouts of its files, and points as the official scorer computes them."""

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.mme import BENCHMARK, COGNITION, PERCEPTION, parse_answer
from tests.evaluation.fakes import answer_in_order, image_names, prompt_text, write_image

WITH_FOLDERS = ("posters", "celebrity", "scene", "landmark", "artwork")


def write_task(data, task, names=("0001",)):
    """Writes the files of a task: two questions per image, with the answers Yes and No."""
    folder = data / task
    texts, images = (folder / "questions_answers_YN", folder / "images") if task in WITH_FOLDERS else (folder, folder)
    texts.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_image(images / f"{name}.jpg")
        (texts / f"{name}.txt").write_text(
            f"Is there a {task}? Please answer yes or no.\tYes\nIs it a fish? Please answer yes or no.\tNo\n"
        )


@pytest.fixture
def data(tmp_path):
    for task in (*PERCEPTION, *COGNITION):
        write_task(tmp_path, task)
    write_task(tmp_path, "count", ("0002",))
    return tmp_path


def test_all_tasks_are_read_with_the_authors_prompt(data):
    questions = BENCHMARK.read(data, {})
    assert len(questions) == 2 * 15
    assert {question.task for question in questions} == {*PERCEPTION, *COGNITION}
    assert prompt_text(questions[0]) == (
        "<image_placeholder>\nIs there a existence? Please answer yes or no.\n"
        "Answer the question using a single word or phrase."
    )
    assert image_names(questions[0]) == ["0001.jpg"]
    assert questions[0].group == questions[1].group != questions[2].group


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("yes, it is", "yes"),
        ("No.", "no"),
        (" No", "no"),
        ("\n\t  Yes", "yes"),
        ("none", "no"),
        ("It is not", "other"),
    ],
)
def test_answers_are_parsed_from_their_first_letters(answer, expected):
    assert parse_answer(answer) == expected


def test_correct_answers_get_all_points(data):
    questions = BENCHMARK.read(data, {})
    scores = BENCHMARK.score(questions, {question.id: question.label for question in questions}, {})
    assert (scores["perception"], scores["cognition"], scores["total"]) == (2000, 800, 2800)


def test_points_are_accuracy_plus_pair_accuracy(data):
    questions = BENCHMARK.read(data, {})
    answers = {question.id: question.label for question in questions}
    # For "count", one of two images has two correct answers. For "posters", the answers are neither yes nor no.
    answers["count/0002/2"] = "Yes"
    answers |= {"posters/0001/1": "It is", "posters/0001/2": "Maybe"}
    # For "code_reasoning", the answers are always yes: half of the questions and no pair are correct.
    answers["code_reasoning/0001/2"] = "Yes, of course"
    scores = BENCHMARK.score(questions, answers, {})
    assert (scores["count.accuracy"], scores["count.accuracy_plus"], scores["count.score"]) == (75, 50, 125)
    assert scores["posters.score"] == 0
    assert scores["code_reasoning.score"] == 50
    assert (scores["perception"], scores["cognition"]) == (8 * 200 + 125, 3 * 200 + 50)


@pytest.mark.parametrize(
    ("asked", "sums"), [(("OCR", "count"), ()), (COGNITION, ("cognition",)), (PERCEPTION, ("perception",))]
)
def test_only_tasks_with_questions_are_reported(data, tmp_path, asked, sums):
    questions = [question for question in BENCHMARK.read(data, {}) if question.task in asked]
    answers = {question.id: question.label for question in questions}
    scores = BENCHMARK.score(questions, answers, {})
    assert set(scores) == {
        *sums,
        *(f"{task}.{score}" for task in asked for score in ("score", "accuracy", "accuracy_plus")),
    }
    assert all(scores[name] == 200 * len(asked) for name in sums)
    out = tmp_path / "predictions"
    out.mkdir()
    BENCHMARK.write_predictions(questions, answers, out)
    assert {file.stem for file in out.iterdir()} == set(asked)


def test_predictions_have_the_official_columns(data, tmp_path):
    questions = BENCHMARK.read(data, {})
    out = tmp_path / "predictions"
    out.mkdir()
    BENCHMARK.write_predictions(questions, answer_in_order(questions, *["Yes,\tit\nis"] * len(questions)), out)
    assert (out / "posters.txt").read_text().splitlines() == [
        "0001.jpg\tIs there a posters? Please answer yes or no.\tYes\tYes, it is",
        "0001.jpg\tIs it a fish? Please answer yes or no.\tNo\tYes, it is",
    ]
    assert len(list(out.iterdir())) == 14


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Is it?\tYes\nIs it not?\tMaybe\n", r"line 2: the answer is 'Maybe'; expected QUESTION<tab>Yes or No"),
        ("Is it?\tYes\n", r"0001.txt contains 1 questions; expected two"),
    ],
)
def test_malformed_questions_are_reported(data, text, message):
    (data / "scene" / "questions_answers_YN" / "0001.txt").write_text(text)
    with pytest.raises(JanusError, match=message):
        BENCHMARK.read(data, {})


def test_missing_files_are_reported(data):
    (data / "OCR" / "0001.jpg").unlink()
    with pytest.raises(JanusError, match="contains no image 0001"):
        BENCHMARK.read(data, {})
    (data / "OCR").rename(data / "ocr")
    with pytest.raises(JanusError, match=r"/OCR, the folder of MME's task OCR, is missing"):
        BENCHMARK.read(data, {})
