"""POPE, by hand: three splits of questions in the authors' files, and what their scorer makes of answers."""

import json

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.pope import BENCHMARK, says_yes
from tests.evaluation.asking import answered, pictures_of, text_of

LABELS = ["yes", "no", "yes", "no"]


def line(number, label, **more):
    image = f"COCO_val2014_{number:012}.jpg"
    return {
        "question_id": number,
        "image": image,
        "text": f"Is there a cat {number} in the image?",
        "label": label,
    } | more


def write(folder, split, lines):
    (folder / f"coco_pope_{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def data(tmp_path):
    for split in ("random", "popular", "adversarial"):
        write(tmp_path, split, [line(number, label) for number, label in enumerate(LABELS, 1)])
    return tmp_path


def test_questions_are_asked_as_the_authors_ask_them(data):
    questions = BENCHMARK.read(data, {})
    assert len(questions) == 12
    assert text_of(questions[0]) == (
        "<image_placeholder>\nIs there a cat 1 in the image?\nAnswer the question using a single word or phrase."
    )
    assert pictures_of(questions[1]) == ["COCO_val2014_000000000002.jpg"]
    assert questions[0].system_prompt == ""


def test_what_some_copies_add_is_not_asked(data):
    write(data, "random", [line(1, "yes", text="Is there a dog? Please answer yes or no.")])
    assert text_of(BENCHMARK.read(data, {})[0]).splitlines()[1] == "Is there a dog?"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", True),
        ("No", False),
        ("no", False),
        ("No, there is none.", False),
        ("There is not a cat", False),
        ("Yes. No, wait", True),
        ("Nothing", True),
        ("", True),
        ("NO", True),
    ],
)
def test_answers_are_read_as_the_scorer_reads_them(answer, expected):
    assert says_yes(answer) is expected


def test_figures_are_those_of_the_definition(data):
    questions = BENCHMARK.read(data, {})
    # By split: all right; two yes of which one is right, one no that is; always yes.
    answers = answered(questions, *["Yes", "No"] * 2, *["Yes", "Yes", "No", "No"], *["Yes"] * 4)
    scores = BENCHMARK.score(questions, answers, {})
    assert {name.split(".")[1]: value for name, value in scores.items() if name.startswith("random")} == {
        "f1": 100,
        "accuracy": 100,
        "precision": 100,
        "recall": 100,
        "yes": 50,
    }
    assert scores["popular.accuracy"] == 50
    assert (scores["popular.precision"], scores["popular.recall"], scores["popular.f1"]) == (50, 50, 50)
    assert scores["adversarial.accuracy"] == 50
    assert (scores["adversarial.precision"], scores["adversarial.recall"]) == (50, 100)
    assert scores["adversarial.f1"] == pytest.approx(200 / 3)
    assert scores["adversarial.yes"] == 100
    assert scores["mean.accuracy"] == pytest.approx(200 / 3)
    assert scores["mean.f1"] == pytest.approx((100 + 50 + 200 / 3) / 3)


def test_a_model_that_never_says_yes_has_no_f1(data):
    questions = BENCHMARK.read(data, {})
    scores = BENCHMARK.score(questions, {question.id: "No" for question in questions}, {})
    assert (scores["random.f1"], scores["random.precision"], scores["random.accuracy"]) == (0, 0, 50)


def test_predictions_are_lines_of_the_scorers_fields(data, tmp_path):
    questions = BENCHMARK.read(data, {})
    out = tmp_path / "predictions"
    out.mkdir()
    BENCHMARK.write_predictions(questions, answered(questions, *[f"answer {n}" for n in range(12)]), out)
    lines = (out / "coco_pope_popular.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"question_id": number, "text": f"answer {number + 3}"} for number in range(1, 5)
    ]


MISTAKES = {
    "no label": ({"label": None}, r"coco_pope_popular.json, line 2: the field label is missing .*one of yes, no"),
    "another label": ({"label": "perhaps"}, r"popular.json, line 2: label is 'perhaps'; one of yes, no is expected"),
    "no text": ({"text": 7}, r"popular.json, line 2: text is 7; text is expected"),
    "a picture elsewhere": ({"image": "../secret.jpg"}, r"line 2: the picture '../secret.jpg' lies outside"),
    "an id that is none": ({"question_id": [1]}, r"line 2: question_id is \[1\]; a whole number or text"),
    "an id twice": ({"question_id": 1}, r"two questions with the id 'popular/1'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_data_is_named(data, mistake):
    changes, words = MISTAKES[mistake]
    write(data, "popular", [line(1, "no"), line(2, "yes") | changes])
    with pytest.raises(JanusError, match=words):
        BENCHMARK.read(data, {})


def test_a_missing_file_and_a_broken_line_are_named(data):
    (data / "coco_pope_adversarial.json").write_text('{"question_id": 1, "im')
    with pytest.raises(JanusError, match=r"coco_pope_adversarial.json, line 1: a json object is expected"):
        BENCHMARK.read(data, {})
    (data / "coco_pope_adversarial.json").unlink()
    with pytest.raises(JanusError, match=r"coco_pope_adversarial.json does not exist"):
        BENCHMARK.read(data, {})
