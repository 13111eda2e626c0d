import numpy as np
import pytest

from examples.shapes.dataset import (
    DEFAULT_VOCABULARY,
    Background,
    Category,
    Scene,
    SceneObject,
    Split,
    chance_of_images,
    check_image,
    render,
    sample_prompts,
    score_images,
)
from examples.shapes.dataset.detector import UNKNOWN, Detection
from examples.shapes.dataset.prompts import prompt_for
from examples.shapes.dataset.scene import held_out
from examples.shapes.dataset.scoring import check_detections, relations
from janus_jax.errors import JanusError

LEFT, MIDDLE, RIGHT = (0.2, 0.5), (0.5, 0.5), (0.8, 0.5)


def obj(shape, color, center=MIDDLE):
    return SceneObject(shape, color, "small", *center)


def scene(*objects):
    return Scene(objects, Background("plain", "paper"))


def prompt(category, *objects):
    """Returns the prompt that names these objects in this order."""

    class InOrder:
        def permutation(self, count):
            return np.arange(count)

    return prompt_for(scene(*objects), category, InOrder())


def verdict(asked, *objects):
    found = check_image(asked, render(scene(*objects), 48))
    return found.correct, found.strict


RED_STAR = obj("star", "red", LEFT)
BLUE_CIRCLE = obj("circle", "blue", RIGHT)
PAIR = [RED_STAR, BLUE_CIRCLE]
EXTRA = obj("cross", "green", (0.5, 0.2))
CROSSES = [obj("cross", "red", LEFT), obj("cross", "red", RIGHT)]
RIGHT_BOTH, RIGHT_BUT_EXTRA, WRONG = (True, True), (True, False), (False, False)


@pytest.mark.parametrize(
    ("category", "asked", "shown", "expected"),
    [
        (Category.SINGLE_OBJECT, [RED_STAR], [obj("star", "blue")], RIGHT_BOTH),
        (Category.SINGLE_OBJECT, [RED_STAR], [RED_STAR, EXTRA], RIGHT_BUT_EXTRA),
        (Category.SINGLE_OBJECT, [RED_STAR], [BLUE_CIRCLE], WRONG),
        (Category.TWO_OBJECT, PAIR, PAIR, RIGHT_BOTH),
        (Category.TWO_OBJECT, PAIR, [*PAIR, EXTRA], RIGHT_BUT_EXTRA),
        (Category.TWO_OBJECT, PAIR, [RED_STAR], WRONG),
        (Category.COLORS, [RED_STAR], [RED_STAR], RIGHT_BOTH),
        (Category.COLORS, [RED_STAR], [obj("star", "blue")], WRONG),
        (Category.COLOR_ATTR, PAIR, [BLUE_CIRCLE, RED_STAR], RIGHT_BOTH),
        (Category.COLOR_ATTR, PAIR, [obj("star", "blue", LEFT), obj("circle", "red", RIGHT)], WRONG),
        (Category.POSITION, PAIR, PAIR, RIGHT_BOTH),
        (Category.POSITION, PAIR, [obj("star", "red", RIGHT), obj("circle", "blue", LEFT)], WRONG),
        (Category.POSITION, PAIR, [*PAIR, EXTRA], RIGHT_BUT_EXTRA),
        (Category.COUNTING, CROSSES, [CROSSES[0], obj("cross", "blue", RIGHT)], RIGHT_BOTH),
        (Category.COUNTING, CROSSES, [*CROSSES, obj("cross", "red", MIDDLE)], WRONG),
        (Category.COUNTING, CROSSES, CROSSES[:1], WRONG),
    ],
)
def test_images_are_checked_by_both_rules(category, asked, shown, expected):
    assert verdict(prompt(category, *asked), *shown) == expected


def test_unknown_regions_count_as_surplus_objects():
    blob = Detection(UNKNOWN, "red", (0.1, 0.1, 0.2, 0.3), 0.4)
    star = Detection("star", "red", (0.5, 0.5, 0.7, 0.7), 0.9)
    found = check_detections(prompt(Category.COLORS, RED_STAR), [blob, star])
    assert (found.correct, found.strict, found.reason) == (True, False, "1 more than asked for")


def test_the_reason_names_the_error():
    image = render(scene(obj("star", "blue")), 48)
    assert check_image(prompt(Category.COLORS, RED_STAR), image).reason == "star blue instead of red"


@pytest.mark.parametrize(
    ("center", "expected"),
    [
        ((0.2, 0.5), {"left"}),
        ((0.8, 0.5), {"right"}),
        ((0.2, 0.2), {"left", "above"}),
        ((0.8, 0.8), {"right", "below"}),
        ((0.52, 0.51), set()),
        ((0.2, 0.4), {"left"}),
    ],
)
def test_relations_follow_geneval(center, expected):
    def box_at(x, y):
        return Detection("star", "red", (x - 0.1, y - 0.1, x + 0.1, y + 0.1), 1.0)

    assert relations(box_at(*center), box_at(0.5, 0.5)) == expected


@pytest.mark.parametrize("split", Split)
def test_prompts_belong_to_their_split(split):
    """The combination in the prompt is held out in TEST, and never in TRAIN."""
    for asked in sample_prompts(split, 30):
        named = [(required.shape, required.color) for required in asked.requirements for _ in range(required.count)]
        expected = split is Split.TEST and asked.category is not Category.SINGLE_OBJECT
        assert bool(held_out(named)) == expected, asked.text


def test_prompts_can_be_about_new_words():
    about = frozenset({"heart", "pink"})
    for split in Split:
        for asked in sample_prompts(split, 10, vocabulary=DEFAULT_VOCABULARY.with_extras(*about), about=about):
            assert "heart" in asked.text or "pink" in asked.text


def test_chance_is_far_below_one():
    asked = sample_prompts(Split.TEST, 30)
    chance = chance_of_images(asked)
    assert set(chance.geneval.by_category) == set(Category)
    assert 0 < chance.geneval.overall < 0.25
    assert chance.strict.overall <= chance.geneval.overall
    new = sample_prompts(
        Split.TEST, 10, vocabulary=DEFAULT_VOCABULARY.with_extras("heart", "pink"), about=frozenset({"heart", "pink"})
    )
    assert chance_of_images(new).geneval.overall == 0


def test_images_and_prompts_must_have_equal_numbers():
    asked = sample_prompts(Split.TEST, 1)
    with pytest.raises(JanusError, match="2 images for 6 prompts"):
        score_images(asked, [np.zeros((48, 48, 3), np.uint8)] * 2)
    with pytest.raises(JanusError, match="0 images for 0 prompts"):
        score_images([], [])
