import math
from collections import Counter

import numpy as np
import pytest

from examples.shapes.dataset import (
    DEFAULT_VOCABULARY,
    FULL_VOCABULARY,
    Background,
    Category,
    Relation,
    SceneObject,
    Split,
    Vocabulary,
    sample_scene,
)
from examples.shapes.dataset.scene import held_out, relation
from examples.shapes.dataset.vocabulary import (
    HELD_OUT_COUNTS,
    HELD_OUT_SHAPE_PAIRS,
    HELD_OUT_SINGLES,
)
from janus_jax.errors import JanusError

PAIR = (("circle", "red"), ("star", "green"))


def scenes(count, **settings):
    return [sample_scene(np.random.default_rng((7, index)), **settings) for index in range(count)]


def kinds(scene):
    return [(obj.shape, obj.color) for obj in scene.objects]


@pytest.mark.parametrize("vocabulary", [DEFAULT_VOCABULARY, FULL_VOCABULARY])
@pytest.mark.parametrize("category", [None, *Category])
def test_no_training_scene_shows_a_held_out_combination(category, vocabulary):
    assert not any(held_out(kinds(scene)) for scene in scenes(200, category=category, vocabulary=vocabulary))


@pytest.mark.parametrize("vocabulary", [DEFAULT_VOCABULARY, FULL_VOCABULARY])
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
def test_held_out_returns_the_affected_categories(shown, expected):
    assert held_out(shown) == expected


def test_objects_of_position_scenes_share_a_row_or_column():
    for scene in scenes(100, category=Category.POSITION):
        one, other = scene.objects
        assert (one.row == other.row) != (one.column == other.column)
    corner = SceneObject("star", "red", "small", 1 / 6, 5 / 6)
    assert (corner.row, corner.column) == ("bottom", "left")


def test_mixtures_repeat_some_kinds():
    mixed = [kinds(scene) for scene in scenes(300) if len(scene.objects) > 2]
    several = [found for found in mixed if 1 < len(set(found)) < len(found)]
    assert 0.3 < len(several) / len(mixed) < 0.8


def test_objects_do_not_overlap_or_touch_the_border():
    for scene in scenes(300):
        for index, one in enumerate(scene.objects):
            assert one.diameter / 2 < min(one.x, one.y, 1 - one.x, 1 - one.y)
            for other in scene.objects[:index]:
                assert math.dist((one.x, one.y), (other.x, other.y)) > (one.diameter + other.diameter) / 2 + 0.03


def test_scenes_suit_their_category():
    assert all(len(scene.objects) == 1 for scene in scenes(50, category=Category.COLORS))
    counts = Counter(len(scene.objects) for scene in scenes(100, category=Category.COUNTING))
    assert set(counts) == {2, 3, 4}
    assert all(len(set(kinds(scene))) == 1 for scene in scenes(50, category=Category.COUNTING))
    assert all(len(scene.shapes) == len(scene.colors) == 2 for scene in scenes(50, category=Category.COLOR_ATTR))
    found = Counter(relation(*scene.objects) for scene in scenes(100, category=Category.POSITION))
    assert set(found) <= set(Relation)
    assert {len(scene.objects) for scene in scenes(100)} == {1, 2, 3, 4}


def test_swapped_objects_have_the_opposite_relation():
    for scene in scenes(100, category=Category.POSITION):
        one, other = scene.objects
        assert relation(one, other).opposite is relation(other, one)


def test_scenes_show_the_requested_words():
    vocabulary = DEFAULT_VOCABULARY.with_extras("heart", "pink")
    about = frozenset({"heart", "pink"})
    for split in Split:
        shown = scenes(100, vocabulary=vocabulary, split=split, about=about)
        assert all((scene.shapes | scene.colors) & about for scene in shown)


def test_words_for_fine_tuning_are_not_shown_by_default():
    shown = {name for scene in scenes(300) for name in scene.shapes | scene.colors}
    assert shown == {*DEFAULT_VOCABULARY.shapes, *DEFAULT_VOCABULARY.colors}
    assert not shown & {"heart", "ring", "moon", "pink", "cyan"}


def test_extras_are_added_by_name():
    assert DEFAULT_VOCABULARY.with_extras("pink", "heart") == Vocabulary(
        (*DEFAULT_VOCABULARY.shapes, "heart"), (*DEFAULT_VOCABULARY.colors, "pink")
    )
    with pytest.raises(JanusError, match=r"'hexagon'; choose among circle"):
        DEFAULT_VOCABULARY.with_extras("hexagon")


def test_invalid_vocabularies_are_refused():
    with pytest.raises(JanusError, match="colors contain 'brown'"):
        Vocabulary(colors=("red", "brown", "blue", "green"))
    with pytest.raises(JanusError, match="four or more different"):
        Vocabulary(shapes=("circle", "circle", "square", "star"))


def test_impossible_scenes_are_refused():
    few = Vocabulary(("circle", "square", "star", "heart"))
    with pytest.raises(JanusError, match="No test scene for position exists with circle"):
        sample_scene(np.random.default_rng(0), few, Split.TEST, Category.POSITION, frozenset({"star"}))


def test_unknown_names_are_refused():
    with pytest.raises(JanusError, match="shape 'hexagon' does not exist"):
        SceneObject("hexagon", "red", "small", 0.5, 0.5)
    with pytest.raises(JanusError, match="tint 'black' does not exist"):
        Background("plain", "black")


def test_larger_scenes_contain_held_out_combinations():
    crowds = [kinds(scene) for scene in scenes(3000) if len(scene.objects) > 2]
    assert {kind for crowd in crowds for kind in crowd} >= {
        kind
        for kind in HELD_OUT_SINGLES
        if kind[0] in DEFAULT_VOCABULARY.shapes and kind[1] in DEFAULT_VOCABULARY.colors
    }
    together = [pair for pair in HELD_OUT_SHAPE_PAIRS if pair <= set(DEFAULT_VOCABULARY.shapes)]
    assert all(any(pair <= {shape for shape, _ in crowd} for crowd in crowds) for pair in together)
    numbers = [(shape, number) for shape, number in HELD_OUT_COUNTS if shape in DEFAULT_VOCABULARY.shapes]
    assert all(any([shape for shape, _ in crowd].count(held) == number for crowd in crowds) for held, number in numbers)
