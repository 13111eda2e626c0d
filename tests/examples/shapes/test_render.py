import numpy as np
import pytest
from scipy import ndimage

from examples.shapes.dataset import (
    DEFAULT,
    EVERYTHING,
    Background,
    Category,
    Scene,
    Split,
    Thing,
    detect,
    draw,
    images,
    sample_scene,
)
from examples.shapes.dataset.render import PALETTE, TINT_PALETTE, outline
from examples.shapes.dataset.scene import TEXTURES, TINTS, held_out
from examples.shapes.dataset.vocabulary import ALL_COLOURS, ALL_SHAPES
from janus_jax.errors import JanusError


def scene_of(shape="circle", colour="red", texture="plain", tint="paper"):
    return Scene((Thing(shape, colour, "large", 0.5, 0.5),), Background(texture, tint))


def test_a_picture_follows_from_its_scene():
    for index in range(10):
        scene = sample_scene(np.random.default_rng(index))
        first = draw(scene, 48)
        first[:] = 0  # What a caller does to a picture changes no other.
        assert draw(scene, 48).any()
        np.testing.assert_array_equal(draw(scene, 48), draw(scene, 48))


@pytest.mark.parametrize("size", [24, 48, 50, 64, 384])
def test_pictures_have_the_size_that_is_asked_for(size):
    picture = draw(scene_of(), size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8


def test_a_picture_is_the_same_at_any_size():
    """Coverage is what a finer picture shows on average, so edges are smooth."""
    for index in range(20):
        scene = sample_scene(np.random.default_rng(index), EVERYTHING)
        fine = draw(scene, 192).reshape(48, 4, 48, 4, 3).mean((1, 3))
        assert np.abs(fine - draw(scene, 48)).mean() < 1.0


@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_outlines_are_distances(shape):
    """Outside, where shadows fade with them."""
    x, y = np.meshgrid(*[np.linspace(-1.5, 1.5, 301)] * 2)
    distance = outline(shape, x, y)
    counted = ndimage.distance_transform_edt(distance > 0) * 0.01
    np.testing.assert_allclose(np.maximum(distance, 0), counted, atol=0.02)
    assert np.abs(x[distance < 0]).max() <= 1.02
    assert np.abs(y[distance < 0]).max() <= 1.02


@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_edges_are_smooth(shape):
    picture = draw(scene_of(shape), 48).astype(int)
    chroma = picture.max(-1) - picture.min(-1)
    inside, outside = chroma[24 - 6 : 24 + 6].max(), chroma[0, 0]
    between = (chroma > outside + 0.2 * (inside - outside)) & (chroma < outside + 0.8 * (inside - outside))
    assert between.any()


def test_no_two_pictures_of_other_things_or_grounds_are_alike():
    variants = [scene_of(shape=shape) for shape in ALL_SHAPES]
    variants += [scene_of(colour=colour) for colour in ALL_COLOURS[1:]]
    variants += [scene_of(texture=texture) for texture in TEXTURES[1:]]
    variants += [scene_of(tint=tint) for tint in TINTS[1:]]
    assert len({draw(scene, 48).tobytes() for scene in variants}) == len(variants)


def test_backgrounds_are_greyer_than_any_thing():
    most_grey = min(max(colour) - min(colour) for colour in PALETTE.values())
    least_grey = max(max(tint) - min(tint) for tint in TINT_PALETTE.values())
    assert most_grey > 3 * least_grey
    assert set(PALETTE) == set(ALL_COLOURS)
    assert set(TINT_PALETTE) == set(TINTS)


def test_backgrounds_are_paler_than_any_thing():
    assert min(min(tint) for tint in TINT_PALETTE.values()) > max(min(colour) for colour in PALETTE.values())


def test_pictures_for_a_tokenizer_follow_from_seed_and_number():
    many = images(3, 8, 32)
    assert many.shape == (8, 32, 32, 3)
    np.testing.assert_array_equal(images(3, 5, 32), many[:5])
    assert (images(4, 5, 32) != many[:5]).any()


def test_pictures_for_a_tokenizer_show_all_words_and_no_held_out_combination():
    found = [[(thing.shape, thing.colour) for thing in detect(picture)] for picture in images(0, 400, 48)]
    assert {shape for kinds in found for shape, _ in kinds} == set(ALL_SHAPES)
    assert {colour for kinds in found for _, colour in kinds} == set(ALL_COLOURS)
    assert not any(held_out(kinds) for kinds in found)
    assert {thing.shape for picture in images(0, 100, 48, DEFAULT) for thing in detect(picture)} == set(DEFAULT.shapes)


def test_pictures_of_held_out_combinations_can_be_had():
    pictures = images(0, 20, 48, split=Split.TEST)
    assert all(held_out([(thing.shape, thing.colour) for thing in detect(picture)]) for picture in pictures)


def test_a_thing_at_the_edge_is_cut_off():
    picture = draw(Scene((Thing("square", "blue", "large", 0.0, 1.0),), Background("plain", "paper")), 48)
    assert picture[-1, 0, 2] > 2 * picture[-1, 0, 0]


def test_too_small_a_picture_is_refused():
    with pytest.raises(JanusError, match="image_size is 8"):
        draw(sample_scene(np.random.default_rng(0), category=Category.COLORS), 8)
