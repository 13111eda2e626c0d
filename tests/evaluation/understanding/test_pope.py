"""Tests of POPE: the authors' files, and scores as the official scorer computes them."""

import json

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.pope import BENCHMARK, parse_yes
from tests.evaluation.fakes import answer_in_order, image_names, prompt_text

LABELS = ["yes", "no", "yes", "no"]


def line(number, label, **more):
    image = f"COCO_val2014_{number:012}.jpg"
    return {
        "question_id": number,
        "image": image,
        "text": f"Is there a cat {number} in the image?",
        "label": label,
    } | more


def write_split(folder, split, lines):
    (folder / f"coco_pope_{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def data(tmp_path):
    for split in ("random", "popular", "adversarial"):
        write_split(tmp_path, split, [line(number, label) for number, label in enumerate(LABELS, 1)])
    return tmp_path


def test_questions_have_the_authors_prompt(data):
    questions = BENCHMARK.read(data, {})
    assert len(questions) == 12
    assert prompt_text(questions[0]) == (
        "<image_placeholder>\nIs there a cat 1 in the image?\nAnswer the question using a single word or phrase."
    )
    assert image_names(questions[1]) == ["COCO_val2014_000000000002.jpg"]
    assert questions[0].system_prompt == ""


def test_the_extra_sentence_of_some_copies_is_removed(data):
    write_split(data, "random", [line(1, "yes", text="Is there a dog? Please answer yes or no.")])
    assert prompt_text(BENCHMARK.read(data, {})[0]).splitlines()[1] == "Is there a dog?"


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
def test_answers_are_parsed_as_by_the_official_scorer(answer, expected):
    assert parse_yes(answer) is expected


def test_scores_follow_their_definition(data):
    questions = BENCHMARK.read(data, {})
    # Random: all correct. Popular: one correct yes, one correct no. Adversarial: always yes.
    answers = answer_in_order(questions, *["Yes", "No"] * 2, *["Yes", "Yes", "No", "No"], *["Yes"] * 4)
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


def test_f1_is_zero_without_a_yes(data):
    questions = BENCHMARK.read(data, {})
    scores = BENCHMARK.score(questions, {question.id: "No" for question in questions}, {})
    assert (scores["random.f1"], scores["random.precision"], scores["random.accuracy"]) == (0, 0, 50)


def test_predictions_have_the_official_format(data, tmp_path):
    questions = BENCHMARK.read(data, {})
    out = tmp_path / "predictions"
    out.mkdir()
    BENCHMARK.write_predictions(questions, answer_in_order(questions, *[f"answer {n}" for n in range(12)]), out)
    lines = (out / "coco_pope_popular.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"question_id": number, "text": f"answer {number + 3}"} for number in range(1, 5)
    ]


MALFORMED = {
    "no label": (
        {"label": None},
        r"popular.json, line 2: the field label is missing; expected one of yes, no",
    ),
    "another label": ({"label": "perhaps"}, r"popular.json, line 2: label is 'perhaps'; expected one of yes, no"),
    "no text": ({"text": 7}, r"popular.json, line 2: text is 7; expected text"),
    "an image outside the folder": ({"image": "../secret.jpg"}, r"line 2: the image '../secret.jpg' is outside"),
    "invalid id": ({"question_id": [1]}, r"line 2: question_id is \[1\]; expected an integer or text"),
    "an id twice": ({"question_id": 1}, r"the id 'popular/1' twice"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_data_is_reported(data, case):
    changes, message = MALFORMED[case]
    write_split(data, "popular", [line(1, "no"), line(2, "yes") | changes])
    with pytest.raises(JanusError, match=message):
        BENCHMARK.load_items(data, {})


def test_a_missing_file_and_a_damaged_line_are_reported(data):
    (data / "coco_pope_adversarial.json").write_text('{"question_id": 1, "im')
    with pytest.raises(JanusError, match=r"coco_pope_adversarial.json, line 1 is not JSON .*; expected a JSON object"):
        BENCHMARK.read(data, {})
    (data / "coco_pope_adversarial.json").unlink()
    with pytest.raises(JanusError, match=r"coco_pope_adversarial.json does not exist"):
        BENCHMARK.read(data, {})
