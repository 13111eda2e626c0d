"""Tests of the parser for answers to multiple-choice questions."""

import pytest

from janus_jax.evaluation.understanding.prompts import parse_choice

OPTIONS = {"A": "One", "B": "Two dogs", "C": "Three", "D": "Four"}
SAME = {"A": "Not the same", "B": "same"}
BOTH = {"A": "Cats", "B": "Dogs", "C": "Birds", "D": "both A,B, and C"}


# The expected letters are those of VLMEvalKit's `can_infer` of January 2025; "" stands for its values False and "Z".
@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("B", OPTIONS, "B"),
        ("B.", OPTIONS, "B"),
        ("(C)", OPTIONS, "C"),
        ("{A}", OPTIONS, "A"),
        ("**B**", OPTIONS, "B"),
        ("Answer:C", OPTIONS, "C"),
        ("B. Two dogs", OPTIONS, "B"),
        ("B: Three", OPTIONS, "B"),
        ("A or A", OPTIONS, "A"),
        ("The answer is D.", OPTIONS, "D"),
        ("The answer is A.", OPTIONS, "A"),
        ("A man with three hats", OPTIONS, "A"),
        ("B because it is larger than all of the other animals in the picture", OPTIONS, "B"),
        ("Of all of the animals that I see in the picture, B", OPTIONS, "B"),
        ("There are two dogs", OPTIONS, "B"),
        ("ONE", OPTIONS, "A"),
        ("(b) two dogs", OPTIONS, "B"),
        ("thirty-four", OPTIONS, "D"),
        ("A, B, C and D are wrong; four", OPTIONS, "D"),
        ("One or three", OPTIONS, ""),
        ("A or B", OPTIONS, ""),
        ("A is better than B", OPTIONS, ""),
        ("The answer is b.", OPTIONS, ""),
        ("B/C", OPTIONS, ""),
        ("B?", OPTIONS, ""),
        ("'B'", OPTIONS, ""),
        ("E. Five", OPTIONS, ""),
        ("A or Z", OPTIONS, "A"),
        ("Z. Four", OPTIONS, ""),
        ("Cannot determine the answer, maybe B", OPTIONS, ""),
        ("I'm sorry, but without the image provided I choose B", OPTIONS, ""),
        ("Who knows?", OPTIONS, ""),
        ("", OPTIONS, ""),
        ("A. Not the same", SAME, "A"),
        ("B. same", SAME, "B"),
        ("same", SAME, "B"),
        ("Not the same", SAME, ""),
        ("D. both A,B, and C", BOTH, "D"),
        ("both A,B, and C", BOTH, "D"),
        ("A and B", BOTH, ""),
        ("Cats and dogs", BOTH, ""),
        ("All birds", BOTH, "C"),
    ],
)
def test_the_letter_is_that_of_the_authors_toolkit(answer, options, expected):
    assert parse_choice(answer, options) == expected
