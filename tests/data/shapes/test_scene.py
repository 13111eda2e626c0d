import math
from collections import Counter

import numpy as np
import pytest

from janus_jax.data.shapes import (
    DEFAULT,
    EVERYTHING,
    Background,
    Category,
    Relation,
    Split,
    Thing,
    Vocabulary,
    relation,
    sample_scene,
)
from janus_jax.data.shapes.scene import held_out
from janus_jax.data.shapes.vocabulary import (
    ALL_COLOURS,
    ALL_SHAPES,
    HELD_OUT_COLOURS,
    HELD_OUT_NUMBERS,
    HELD_OUT_TOGETHER,
)
from janus_jax.errors import JanusError


def scenes(count, **settings):
    return [sample_scene(np.random.default_rng((7, index)), **settings) for index in range(count)]


def kinds(scene):
    return [(thing.shape, thing.colour) for thing in scene.things]


def test_a_scene_follows_from_its_seed():
    assert scenes(20) == scenes(20)


@pytest.mark.parametrize("vocabulary", [DEFAULT, EVERYTHING])
@pytest.mark.parametrize("category", [None, *Category])
def test_no_training_scene_shows_a_held_out_combination(category, vocabulary):
    assert not any(held_out(kinds(scene)) for scene in scenes(200, category=category, vocabulary=vocabulary))


@pytest.mark.parametrize("vocabulary", [DEFAULT, EVERYTHING])
@pytest.mark.parametrize("category", [None, *Category])
def test_every_test_scene_shows_a_combination_held_out_for_its_category(category, vocabulary):
    shown = scenes(100, category=category, vocabulary=vocabulary, split=Split.TEST)
    assert all(category in held_out(kinds(scene)) for scene in shown)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ([("circle", "red")], {None, Category.SINGLE_OBJECT, Category.COLORS, Category.COLOR_ATTR}),
        (
            [("circle", "red"), ("star", "blue")],
            {None, Category.SINGLE_OBJECT, Category.COLORS, Category.COLOR_ATTR},
        ),
        ([("circle", "red"), ("star", "blue"), ("cross", "green")], set()),
        ([("triangle", "red"), ("star", "red")], {None, Category.TWO_OBJECT, Category.POSITION}),
        ([("triangle", "red"), ("star", "red"), ("cross", "red")], set()),
        ([("star", "red"), ("star", "blue")], {None, Category.COUNTING}),
        ([("star", "red"), ("star", "red"), ("cross", "blue")], set()),
        ([("star", "red")] * 3, set()),
        ([("star", "red"), ("square", "red")], set()),
    ],
)
def test_what_is_held_out(shown, expected):
    assert held_out(shown) == expected


def test_each_name_is_held_out_in_part_and_shown_in_most():
    for axis, names in ((0, ALL_SHAPES), (1, ALL_COLOURS)):
        assert {kind[axis] for kind in HELD_OUT_COLOURS} == set(names)
    for shape in ALL_SHAPES:
        assert sum(kind[0] == shape for kind in HELD_OUT_COLOURS) <= 2
        assert 1 <= sum(shape in pair for pair in HELD_OUT_TOGETHER) <= 2


def test_things_stand_clear_of_one_another_and_of_the_edge():
    for scene in scenes(300):
        for index, one in enumerate(scene.things):
            assert one.diameter / 2 < min(one.x, one.y, 1 - one.x, 1 - one.y)
            for other in scene.things[:index]:
                assert math.dist((one.x, one.y), (other.x, other.y)) > (one.diameter + other.diameter) / 2 + 0.03


def test_scenes_have_what_their_category_asks_for():
    assert all(len(scene.things) == 1 for scene in scenes(50, category=Category.COLORS))
    counts = Counter(len(scene.things) for scene in scenes(100, category=Category.COUNTING))
    assert set(counts) == {2, 3, 4}
    assert all(len(set(kinds(scene))) == 1 for scene in scenes(50, category=Category.COUNTING))
    assert all(len(scene.shapes) == len(scene.colours) == 2 for scene in scenes(50, category=Category.COLOR_ATTR))
    found = Counter(relation(*scene.things) for scene in scenes(100, category=Category.POSITION))
    assert set(found) <= set(Relation)
    assert {len(scene.things) for scene in scenes(100)} == {1, 2, 3, 4}


def test_the_other_thing_sees_the_opposite():
    for scene in scenes(100, category=Category.POSITION):
        one, other = scene.things
        assert relation(one, other).opposite is relation(other, one)


def test_scenes_are_about_what_is_wanted():
    vocabulary = DEFAULT.with_extras("heart", "pink")
    about = frozenset({"heart", "pink"})
    for split in Split:
        shown = scenes(100, vocabulary=vocabulary, split=split, about=about)
        assert all((scene.shapes | scene.colours) & about for scene in shown)


def test_kept_out_names_are_not_shown_by_default():
    shown = {name for scene in scenes(300) for name in scene.shapes | scene.colours}
    assert shown == {*DEFAULT.shapes, *DEFAULT.colours}
    assert not shown & {"heart", "ring", "moon", "pink", "cyan"}


def test_extras_are_added_by_name():
    assert DEFAULT.with_extras("pink", "heart") == Vocabulary((*DEFAULT.shapes, "heart"), (*DEFAULT.colours, "pink"))
    with pytest.raises(JanusError, match=r"'hexagon'; its names are circle"):
        DEFAULT.with_extras("hexagon")


def test_a_wrong_vocabulary_is_refused():
    with pytest.raises(JanusError, match="colours hold 'brown'"):
        Vocabulary(colours=("red", "brown", "blue", "green"))
    with pytest.raises(JanusError, match="four or more different"):
        Vocabulary(shapes=("circle", "circle", "square", "star"))


def test_what_no_vocabulary_gives_is_refused():
    few = Vocabulary(("circle", "square", "star", "heart"))
    with pytest.raises(JanusError, match="No test scene for position can be made of circle"):
        sample_scene(np.random.default_rng(0), few, Split.TEST, Category.POSITION, frozenset({"star"}))


def test_names_that_the_world_lacks_are_refused():
    with pytest.raises(JanusError, match="shape 'hexagon' is none"):
        Thing("hexagon", "red", "small", 0.5, 0.5)
    with pytest.raises(JanusError, match="tint 'black' is none"):
        Background("plain", "black")


def test_crowds_show_what_is_held_out():
    """Whatever pictures of one or two things never have, so that it is no law of the world."""
    crowds = [kinds(scene) for scene in scenes(3000) if len(scene.things) > 2]
    assert {kind for crowd in crowds for kind in crowd} >= {
        kind for kind in HELD_OUT_COLOURS if kind[0] in DEFAULT.shapes and kind[1] in DEFAULT.colours
    }
    together = [pair for pair in HELD_OUT_TOGETHER if pair <= set(DEFAULT.shapes)]
    assert all(any(pair <= {shape for shape, _ in crowd} for crowd in crowds) for pair in together)
    numbers = [(shape, number) for shape, number in HELD_OUT_NUMBERS if shape in DEFAULT.shapes]
    assert all(any([shape for shape, _ in crowd].count(held) == number for crowd in crowds) for held, number in numbers)
