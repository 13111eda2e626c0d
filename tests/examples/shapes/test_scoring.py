import numpy as np
import pytest

from examples.shapes.dataset import (
    DEFAULT,
    Background,
    Category,
    Scene,
    Split,
    Thing,
    chance_of_drawings,
    draw,
    judge,
    prompts,
    score_drawings,
)
from examples.shapes.dataset.detector import UNKNOWN, Detection
from examples.shapes.dataset.prompts import prompt_for
from examples.shapes.dataset.scene import held_out
from examples.shapes.dataset.scoring import judge_detections, sides
from janus_jax.errors import JanusError

LEFT, MIDDLE, RIGHT = (0.2, 0.5), (0.5, 0.5), (0.8, 0.5)


def thing(shape, colour, place=MIDDLE):
    return Thing(shape, colour, "small", *place)


def scene(*things):
    return Scene(things, Background("plain", "paper"))


def prompt(category, *things):
    """The prompt that names these things in this order."""

    class InOrder:
        def permutation(self, count):
            return np.arange(count)

    return prompt_for(scene(*things), category, InOrder())


def verdict(asked, *things):
    found = judge(asked, draw(scene(*things), 48))
    return found.correct, found.strict


RED_STAR = thing("star", "red", LEFT)
BLUE_CIRCLE = thing("circle", "blue", RIGHT)
EXTRA = thing("cross", "green", (0.5, 0.2))
RIGHT_BOTH, RIGHT_BUT_EXTRA, WRONG = (True, True), (True, False), (False, False)


@pytest.mark.parametrize(
    ("category", "asked", "drawn", "expected"),
    [
        (Category.SINGLE_OBJECT, [RED_STAR], [thing("star", "blue")], RIGHT_BOTH),
        (Category.SINGLE_OBJECT, [RED_STAR], [RED_STAR, EXTRA], RIGHT_BUT_EXTRA),
        (Category.SINGLE_OBJECT, [RED_STAR], [BLUE_CIRCLE], WRONG),
        (Category.TWO_OBJECT, [RED_STAR, BLUE_CIRCLE], [RED_STAR, BLUE_CIRCLE], RIGHT_BOTH),
        (Category.TWO_OBJECT, [RED_STAR, BLUE_CIRCLE], [RED_STAR, BLUE_CIRCLE, EXTRA], RIGHT_BUT_EXTRA),
        (Category.TWO_OBJECT, [RED_STAR, BLUE_CIRCLE], [RED_STAR], WRONG),
        (Category.COLORS, [RED_STAR], [RED_STAR], RIGHT_BOTH),
        (Category.COLORS, [RED_STAR], [thing("star", "blue")], WRONG),
        (Category.COLOR_ATTR, [RED_STAR, BLUE_CIRCLE], [BLUE_CIRCLE, RED_STAR], RIGHT_BOTH),
        (
            Category.COLOR_ATTR,
            [RED_STAR, BLUE_CIRCLE],
            [thing("star", "blue", LEFT), thing("circle", "red", RIGHT)],
            WRONG,
        ),
        (Category.POSITION, [RED_STAR, BLUE_CIRCLE], [RED_STAR, BLUE_CIRCLE], RIGHT_BOTH),
        (
            Category.POSITION,
            [RED_STAR, BLUE_CIRCLE],
            [thing("star", "red", RIGHT), thing("circle", "blue", LEFT)],
            WRONG,
        ),
        (Category.POSITION, [RED_STAR, BLUE_CIRCLE], [RED_STAR, BLUE_CIRCLE, EXTRA], RIGHT_BUT_EXTRA),
        (
            Category.COUNTING,
            [thing("cross", "red", LEFT), thing("cross", "red", RIGHT)],
            [thing("cross", "red", LEFT), thing("cross", "blue", RIGHT)],
            RIGHT_BOTH,
        ),
        (
            Category.COUNTING,
            [thing("cross", "red", LEFT), thing("cross", "red", RIGHT)],
            [thing("cross", "red", LEFT), thing("cross", "red", MIDDLE), thing("cross", "red", RIGHT)],
            WRONG,
        ),
        (
            Category.COUNTING,
            [thing("cross", "red", LEFT), thing("cross", "red", RIGHT)],
            [thing("cross", "red", LEFT)],
            WRONG,
        ),
    ],
)
def test_pictures_are_judged_by_both_rules(category, asked, drawn, expected):
    assert verdict(prompt(category, *asked), *drawn) == expected


def test_a_blob_counts_as_something_else_that_is_there():
    blob = Detection(UNKNOWN, "red", (0.1, 0.1, 0.2, 0.3), 0.4)
    star = Detection("star", "red", (0.5, 0.5, 0.7, 0.7), 0.9)
    found = judge_detections(prompt(Category.COLORS, RED_STAR), [blob, star])
    assert (found.correct, found.strict, found.reason) == (True, False, "1 more than asked for")


def test_the_reason_names_what_is_wrong():
    picture = draw(scene(thing("star", "blue")), 48)
    assert judge(prompt(Category.COLORS, RED_STAR), picture).reason == "star blue instead of red"


@pytest.mark.parametrize(
    ("middle", "expected"),
    [
        ((0.2, 0.5), {"left"}),
        ((0.8, 0.5), {"right"}),
        ((0.2, 0.2), {"left", "above"}),
        ((0.8, 0.8), {"right", "below"}),
        ((0.52, 0.51), set()),
        ((0.2, 0.4), {"left"}),
    ],
)
def test_sides_are_genevals(middle, expected):
    def box_at(x, y):
        return Detection("star", "red", (x - 0.1, y - 0.1, x + 0.1, y + 0.1), 1.0)

    assert sides(box_at(*middle), box_at(0.5, 0.5)) == expected


def test_prompts_are_metadata_of_genevals_own_format():
    assert prompt(Category.POSITION, RED_STAR, BLUE_CIRCLE).metadata() == {
        "tag": "position",
        "include": [{"class": "circle", "count": 1}, {"class": "star", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a star left of a circle",
    }
    assert prompt(Category.COUNTING, thing("cross", "red", LEFT), thing("cross", "red", RIGHT)).metadata() == {
        "tag": "counting",
        "include": [{"class": "cross", "count": 2}],
        "exclude": [{"class": "cross", "count": 3}],
        "prompt": "a photo of two crosses",
    }
    assert prompt(Category.COLOR_ATTR, RED_STAR, BLUE_CIRCLE).metadata() == {
        "tag": "color_attr",
        "include": [{"class": "star", "count": 1, "color": "red"}, {"class": "circle", "count": 1, "color": "blue"}],
        "prompt": "a photo of a red star and a blue circle",
    }


@pytest.mark.parametrize("split", Split)
def test_prompts_are_their_splits(split):
    """What a prompt itself names is held out in TEST, and never in TRAIN."""
    for asked in prompts(split, 30):
        named = [(wanted.shape, wanted.colour) for wanted in asked.wanted for _ in range(wanted.count)]
        expected = split is Split.TEST and asked.category is not Category.SINGLE_OBJECT
        assert bool(held_out(named)) == expected, asked.text


def test_prompts_follow_from_their_seed():
    assert prompts(Split.TEST, 4) == prompts(Split.TEST, 4)
    assert [asked.text for asked in prompts(Split.TEST, 20)] != [
        asked.text for asked in prompts(Split.TEST, 20, seed=1)
    ]


def test_new_words_can_be_prompted_for():
    about = frozenset({"heart", "pink"})
    for split in Split:
        for asked in prompts(split, 10, vocabulary=DEFAULT.with_extras(*about), about=about):
            assert "heart" in asked.text or "pink" in asked.text


def test_chance_is_far_below_what_right_pictures_score():
    asked = prompts(Split.TEST, 30)
    chance = chance_of_drawings(asked)
    assert set(chance.geneval.by_category) == set(Category)
    assert 0 < chance.geneval.overall < 0.25
    assert chance.strict.overall <= chance.geneval.overall
    new = prompts(Split.TEST, 10, vocabulary=DEFAULT.with_extras("heart", "pink"), about=frozenset({"heart", "pink"}))
    assert chance_of_drawings(new).geneval.overall == 0


def test_pictures_and_prompts_must_pair():
    asked = prompts(Split.TEST, 1)
    with pytest.raises(JanusError, match="2 pictures for 6 prompts"):
        score_drawings(asked, [np.zeros((48, 48, 3), np.uint8)] * 2)
    with pytest.raises(JanusError, match="0 pictures for 0 prompts"):
        score_drawings([], [])
