from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from examples.shapes.dataset import (
    DEFAULT,
    EVERYTHING,
    UNKNOWN,
    Background,
    Category,
    Scene,
    Split,
    Thing,
    detect,
    draw,
    prompts,
    sample_scene,
    score_drawings,
)
from janus_jax.errors import JanusError


def things_of(scene):
    return Counter((thing.shape, thing.colour) for thing in scene.things)


def found_in(picture):
    return Counter((thing.shape, thing.colour) for thing in detect(picture))


def share_right(count, size, change=lambda picture: picture):
    right = 0
    for index in range(count):
        category = (None, *Category)[index % 7]
        scene = sample_scene(np.random.default_rng((5, index)), EVERYTHING, tuple(Split)[index % 2], category)
        right += found_in(change(draw(scene, size))) == things_of(scene)
    return right / count


def blurred(picture):
    return ndimage.gaussian_filter(picture.astype(np.float32), (1, 1, 0)).round().astype(np.uint8)


def coarse(picture):
    side = len(picture)
    small = Image.fromarray(picture).resize((side * 5 // 8,) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def noisy(picture):
    noise = np.random.default_rng(0).normal(0, 8, picture.shape)
    return np.clip(blurred(picture) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("vocabulary", "split"), [(DEFAULT, Split.TEST), (EVERYTHING, Split.TRAIN)])
def test_drawn_scenes_are_read_right_in_every_category(vocabulary, split):
    asked = prompts(split, 170, seed=1, vocabulary=vocabulary)
    scores = score_drawings(asked, [draw(prompt.scene, 48) for prompt in asked])
    assert len(asked) > 1000
    assert min(scores.strict.by_category.values()) >= 0.99
    assert min(scores.geneval.by_category.values()) >= 0.99


@pytest.mark.parametrize("size", [32, 48, 64, 100, 384])
def test_scenes_are_read_right_at_any_size(size):
    assert share_right(140, size) >= 0.99


@pytest.mark.parametrize("change", [blurred, coarse, noisy])
def test_what_a_tokenizer_does_to_a_picture_hardly_matters(change):
    assert share_right(560, 48, change) >= 0.98


def test_boxes_are_where_things_are():
    for index in range(30):
        scene = sample_scene(np.random.default_rng(index), category=Category.COLORS)
        (thing,), (found,) = scene.things, detect(draw(scene, 48))
        assert abs(found.middle[0] - thing.x) < 0.04
        assert abs(found.middle[1] - thing.y) < 0.04
        assert abs((found.box[2] - found.box[0]) - thing.diameter) < 0.1


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_picture_shows_nothing(value):
    assert detect(np.full((48, 48, 3), value, np.uint8)) == []


def test_noise_and_flat_colour_are_no_things():
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    assert all(thing.shape == UNKNOWN for thing in detect(noise))
    bar = np.full((48, 48, 3), 240, np.uint8)
    bar[20:25] = (222, 46, 52)
    assert [(thing.shape, thing.colour) for thing in detect(bar)] == [(UNKNOWN, "red")]


def test_things_that_touch_are_told_apart():
    pair = (Thing("square", "red", "large", 0.36, 0.5), Thing("square", "blue", "large", 0.62, 0.5))
    scene = Scene(pair, Background("plain", "paper"))
    assert found_in(draw(scene, 48)) == things_of(scene)


def test_a_narrower_vocabulary_is_kept_to():
    scene = Scene((Thing("heart", "pink", "large", 0.5, 0.5),), Background("plain", "paper"))
    (found,) = detect(draw(scene, 48), DEFAULT)
    assert found.shape in (*DEFAULT.shapes, UNKNOWN)
    assert found.colour in DEFAULT.colours


@pytest.mark.parametrize("picture", [np.zeros((48, 48), np.uint8), np.zeros((48, 48, 3), np.float32)])
def test_what_is_no_picture_is_refused(picture):
    with pytest.raises(JanusError, match="in uint8"):
        detect(picture)
