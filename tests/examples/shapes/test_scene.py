import itertools
import math
from collections import Counter

import numpy as np
import pytest

from examples.shapes.dataset import (
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
from examples.shapes.dataset.scene import held_out
from examples.shapes.dataset.vocabulary import (
    ALL_COLOURS,
    ALL_SHAPES,
    HELD_OUT_ALONE,
    HELD_OUT_NUMBERS,
    HELD_OUT_TOGETHER,
    is_held_out_pair,
)
from janus_jax.errors import JanusError

PAIR = (("circle", "red"), ("star", "green"))
KINDS = [(shape, colour) for shape in ALL_SHAPES for colour in ALL_COLOURS]


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
        ([("circle", "red")], {None, Category.SINGLE_OBJECT, Category.COLORS}),
        ([("circle", "red"), ("star", "blue")], set()),
        ([PAIR[0], PAIR[1]], {None, Category.COLOR_ATTR}),
        ([PAIR[1], PAIR[0]], {None, Category.COLOR_ATTR}),
        ([*PAIR, ("cross", "green")], set()),
        ([("circle", "red"), ("star", "blue"), ("cross", "green")], set()),
        ([("triangle", "red"), ("star", "red")], {None, Category.TWO_OBJECT, Category.POSITION}),
        ([("triangle", "red"), ("star", "red"), ("cross", "red")], set()),
        ([("star", "red"), ("star", "red")], {None, Category.COUNTING}),
        ([("star", "red"), ("star", "blue")], set()),
        ([("star", "red"), ("star", "red"), ("cross", "blue")], set()),
        ([("star", "red")] * 3, set()),
        ([("star", "red"), ("square", "red")], set()),
    ],
)
def test_what_is_held_out(shown, expected):
    assert held_out(shown) == expected


def test_each_name_is_held_out_in_part_and_shown_in_most():
    assert {shape for shape, _ in HELD_OUT_ALONE} == set(ALL_SHAPES)
    for shape in ALL_SHAPES:
        assert sum(kind[0] == shape for kind in HELD_OUT_ALONE) <= 2
        assert 1 <= sum(shape in pair for pair in HELD_OUT_TOGETHER) <= 2


def test_of_the_pairs_of_each_kind_most_are_shown():
    for kind in KINDS:
        partners = [other for other in KINDS if other[0] != kind[0] and other[1] != kind[1]]
        assert sum(is_held_out_pair(kind, other) for other in partners) < len(partners) / 3
    assert len({frozenset(pair) for pair in itertools.permutations(KINDS, 2) if is_held_out_pair(*pair)}) > 200


def test_what_has_a_place_of_its_own_is_in_one_row_or_column():
    for scene in scenes(100, category=Category.POSITION):
        one, other = scene.things
        assert (one.row == other.row) != (one.column == other.column)
    corner = Thing("star", "red", "small", 1 / 6, 5 / 6)
    assert (corner.row, corner.column) == ("bottom", "left")


def test_mixtures_show_several_of_a_kind():
    mixed = [kinds(scene) for scene in scenes(300) if len(scene.things) > 2]
    several = [found for found in mixed if 1 < len(set(found)) < len(found)]
    assert 0.3 < len(several) / len(mixed) < 0.8


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
    """Whatever pictures of just a combination never have, so that it is no law of the world."""
    crowds = [kinds(scene) for scene in scenes(3000) if len(scene.things) > 2]
    assert {kind for crowd in crowds for kind in crowd} >= {
        kind for kind in HELD_OUT_ALONE if kind[0] in DEFAULT.shapes and kind[1] in DEFAULT.colours
    }
    together = [pair for pair in HELD_OUT_TOGETHER if pair <= set(DEFAULT.shapes)]
    assert all(any(pair <= {shape for shape, _ in crowd} for crowd in crowds) for pair in together)
    numbers = [(shape, number) for shape, number in HELD_OUT_NUMBERS if shape in DEFAULT.shapes]
    assert all(any([shape for shape, _ in crowd].count(held) == number for crowd in crowds) for held, number in numbers)
