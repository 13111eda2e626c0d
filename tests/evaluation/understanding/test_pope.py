"""Tests of POPE's answer parser and of special cases of its files and scores."""

import pytest

from janus_jax.evaluation.understanding.pope import BENCHMARK, SPLITS, parse_yes
from tests.evaluation.fakes import answer_in_order, prompt_text, write_image
from tests.evaluation.test_benchmarks import json_lines, pope_entry, write_files


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


def write_images(folder):
    for number in (1, 2):
        write_image(folder / "val2014" / f"COCO_val2014_{number:012}.jpg")
    return folder


@pytest.fixture
def questions(tmp_path):
    entries = [pope_entry(n, label) for n, label in ((1, "yes"), (2, "no"))]
    entries[0]["text"] = "Is there a dog? Please answer yes or no."
    write_files(tmp_path, {f"coco_pope_{split}.json": json_lines(*entries) for split in SPLITS})
    return BENCHMARK.read(tmp_path, {})


def test_the_extra_sentence_of_some_copies_is_removed(questions):
    assert prompt_text(questions[0]).splitlines()[1] == "Is there a dog?"


def test_f1_is_zero_without_a_yes(questions):
    scores = BENCHMARK.score(questions, {question.id: "No" for question in questions}, {})
    assert (scores["random.f1"], scores["random.precision"], scores["random.accuracy"]) == (0, 0, 50)


def test_a_single_split_is_scored_alone(tmp_path):
    write_files(tmp_path, {"coco_pope_popular.json": json_lines(pope_entry(1, "yes"), pope_entry(2, "no"))})
    questions = BENCHMARK.load_items(write_images(tmp_path), {})
    answers = answer_in_order(questions, "Yes", "No")
    assert set(BENCHMARK.score(questions, answers, {})) == {
        f"popular.{name}" for name in ("f1", "accuracy", "precision", "recall", "yes")
    }
    out = tmp_path / "predictions"
    out.mkdir()
    BENCHMARK.write_predictions(questions, answers, out)
    assert {file.name for file in out.iterdir()} == {"coco_pope_popular.jsonl", "llava_pope.jsonl"}


def test_splits_that_a_limit_excludes_have_no_scores(questions):
    asked = [question for question in questions if question.split != "random"]
    scores = BENCHMARK.score(asked, {question.id: "Yes" for question in asked}, {})
    assert {name.split(".")[0] for name in scores} == {"popular", "adversarial"}
