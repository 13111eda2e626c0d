"""Tests of the parser for answers to multiple-choice questions."""

import pytest

from janus_jax.evaluation.understanding.prompts import parse_choice

OPTIONS = {"A": "One", "B": "Two dogs", "C": "Three", "D": "Four"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("B. Two dogs", "B"),
        ("The answer is D.", "D"),
        ("A", "A"),
        ("A man with three hats", "C"),
        ("There are two dogs", "B"),
        ("A or B", ""),
        ("B, C or D", ""),
        ("A is better than B", ""),
        ("Who knows?", ""),
        ("", ""),
    ],
)
def test_the_chosen_letter_is_parsed(answer, expected):
    assert parse_choice(answer, OPTIONS) == expected
