"""MME, by hand: both of its layouts, and points as its scorer gives them."""

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.mme import BENCHMARK, COGNITION, PERCEPTION, said
from tests.evaluation.asking import answered, pictures_of, put_picture, text_of

WITH_FOLDERS = ("posters", "celebrity", "scene", "landmark", "artwork")


def put_task(data, task, names=("0001",)):
    """Two questions about each picture: one that yes answers, one that no does."""
    folder = data / task
    texts, pictures = (folder / "questions_answers_YN", folder / "images") if task in WITH_FOLDERS else (folder, folder)
    texts.mkdir(parents=True, exist_ok=True)
    for name in names:
        put_picture(pictures / f"{name}.jpg")
        (texts / f"{name}.txt").write_text(
            f"Is there a {task}? Please answer yes or no.\tYes\nIs it a fish? Please answer yes or no.\tNo\n"
        )


@pytest.fixture
def data(tmp_path):
    for task in (*PERCEPTION, *COGNITION):
        put_task(tmp_path, task)
    put_task(tmp_path, "count", ("0002",))
    return tmp_path


def test_all_tasks_are_read_and_asked_as_the_authors_ask_them(data):
    questions = BENCHMARK.read(data, {})
    assert len(questions) == 2 * 15
    assert {question.task for question in questions} == {*PERCEPTION, *COGNITION}
    assert text_of(questions[0]) == (
        "<image_placeholder>\nIs there a existence? Please answer yes or no.\n"
        "Answer the question using a single word or phrase."
    )
    assert pictures_of(questions[0]) == ["0001.jpg"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes", "yes"), ("yes, it is", "yes"), ("No.", "no"), (" No", "no"), ("none", "no"), ("It is not", "other")],
)
def test_answers_are_read_from_their_first_letters(answer, expected):
    assert said(answer) == expected


def test_a_perfect_model_has_all_points(data):
    questions = BENCHMARK.read(data, {})
    scores = BENCHMARK.score(questions, {question.id: question.label for question in questions}, {})
    assert (scores["perception"], scores["cognition"], scores["total"]) == (2000, 800, 2800)


def test_points_are_accuracy_and_accuracy_of_pairs(data):
    questions = BENCHMARK.read(data, {})
    answers = {question.id: question.label for question in questions}
    # Of the two pictures one has both right, the other one of two; of the poster none is said.
    answers["count/0002/2"] = "Yes"
    answers |= {"posters/0001/1": "It is", "posters/0001/2": "Maybe"}
    # Always yes: half the questions, no pair.
    answers["code_reasoning/0001/2"] = "Yes, of course"
    scores = BENCHMARK.score(questions, answers, {})
    assert (scores["count.accuracy"], scores["count.accuracy_plus"], scores["count.score"]) == (75, 50, 125)
    assert scores["posters.score"] == 0
    assert scores["code_reasoning.score"] == 50
    assert (scores["perception"], scores["cognition"]) == (8 * 200 + 125, 3 * 200 + 50)


def test_predictions_are_the_scorers_four_columns(data, tmp_path):
    questions = BENCHMARK.read(data, {})
    out = tmp_path / "predictions"
    out.mkdir()
    BENCHMARK.write_predictions(questions, answered(questions, *["Yes,\tit\nis"] * len(questions)), out)
    assert (out / "posters.txt").read_text().splitlines() == [
        "0001.jpg\tIs there a posters? Please answer yes or no.\tYes\tYes, it is",
        "0001.jpg\tIs it a fish? Please answer yes or no.\tNo\tYes, it is",
    ]
    assert len(list(out.iterdir())) == 14


def test_the_questions_about_a_picture_are_one_group(data):
    questions = BENCHMARK.read(data, {})
    assert questions[0].group == questions[1].group != questions[2].group


def spoil_answer(data):
    (data / "scene" / "questions_answers_YN" / "0001.txt").write_text("Is it?\tYes\nIs it not?\tMaybe\n")


def spoil_number(data):
    (data / "scene" / "questions_answers_YN" / "0001.txt").write_text("Is it?\tYes\n")


MISTAKES = {
    "an answer that is none": (spoil_answer, r"0001.txt, line 2: the answer is 'Maybe'; QUESTION<tab>Yes or No"),
    "one question": (spoil_number, r"0001.txt holds 1 questions; the two about a picture"),
    "no picture": (lambda data: (data / "OCR" / "0001.jpg").unlink(), "holds no picture 0001"),
    "no task": (lambda data: (data / "OCR").rename(data / "ocr"), r"/OCR, the folder of MME's task OCR, is missing"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_data_is_named(data, mistake):
    spoil, words = MISTAKES[mistake]
    spoil(data)
    with pytest.raises(JanusError, match=words):
        BENCHMARK.read(data, {})
