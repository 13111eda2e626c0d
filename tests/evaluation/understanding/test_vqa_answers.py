"""Tests of the official VQA scorer's answer normalization and soft accuracy."""

import pytest

from janus_jax.evaluation.understanding.vqa_answers import normalize, soft_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("The Red Bus", "red bus"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("the dog's", "dog's"),
        ("12:30", "12:30"),
        ("black/white", "black white"),
        ("black, white", "black white"),
        ("black - white", "black white"),
        ("1,000 people", "1000 people"),
        ("1.5", "1.5"),
        ("u.s.a.", "usa"),
        ("  a\tbig\ncat ", "big cat"),
        ("well", "well"),
    ],
)
def test_answers_are_normalized_as_documented(answer, expected):
    assert normalize(answer) == expected


@pytest.mark.parametrize(
    ("matches", "expected"),
    # Of ten annotators k match. Leaving out a matching annotator leaves k - 1 matches; leaving out another leaves k.
    [(0, 0), (1, 9 * 1 / 3 / 10), (2, (2 * 1 / 3 + 8 * 2 / 3) / 10), (3, (3 * 2 / 3 + 7) / 10), (4, 1), (9, 1)],
)
def test_three_other_matches_give_full_accuracy(matches, expected):
    annotations = ["red"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert soft_accuracy("red", annotations) == pytest.approx(expected)


def test_differing_annotations_are_normalized():
    assert soft_accuracy("red bus", ["The red bus."] * 4 + ["bus"] * 6) == 1


def test_unanimous_annotations_are_compared_without_normalization():
    assert soft_accuracy("bus", ["a bus"] * 10) == 0
    assert soft_accuracy("a bus", ["a bus"] * 10) == 1
