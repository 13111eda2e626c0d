import numpy as np
import pytest
from scipy import ndimage

from examples.shapes.dataset import (
    DEFAULT_VOCABULARY,
    FULL_VOCABULARY,
    Background,
    Category,
    Scene,
    SceneObject,
    detect,
    render,
    sample_images,
    sample_scene,
)
from examples.shapes.dataset.render import outline
from examples.shapes.dataset.scene import TEXTURES, TINTS, held_out
from examples.shapes.dataset.vocabulary import ALL_COLORS, ALL_SHAPES
from janus_jax.errors import JanusError


def scene_of(shape="circle", color="red", texture="plain", tint="paper"):
    return Scene((SceneObject(shape, color, "large", 0.5, 0.5),), Background(texture, tint))


def test_images_depend_on_the_scene_only():
    for index in range(10):
        scene = sample_scene(np.random.default_rng(index))
        first = render(scene, 48)
        first[:] = 0  # Changing the returned image must not change the cached background.
        assert render(scene, 48).any()
        np.testing.assert_array_equal(render(scene, 48), render(scene, 48))


def test_images_agree_across_sizes():
    """A large image, averaged over squares of pixels, equals the small one, so edges are smooth."""
    for index in range(20):
        scene = sample_scene(np.random.default_rng(index), FULL_VOCABULARY)
        fine = render(scene, 192).reshape(48, 4, 48, 4, 3).mean((1, 3))
        assert np.abs(fine - render(scene, 48)).mean() < 1.0


@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_outlines_are_distance_functions(shape):
    """Checks distances outside the shape, on which shadows depend."""
    x, y = np.meshgrid(*[np.linspace(-1.5, 1.5, 301)] * 2)
    distance = outline(shape, x, y)
    counted = ndimage.distance_transform_edt(distance > 0) * 0.01
    np.testing.assert_allclose(np.maximum(distance, 0), counted, atol=0.02)
    assert np.abs(x[distance < 0]).max() <= 1.02
    assert np.abs(y[distance < 0]).max() <= 1.02


def test_different_scenes_have_different_images():
    variants = [scene_of(shape=shape) for shape in ALL_SHAPES]
    variants += [scene_of(color=color) for color in ALL_COLORS[1:]]
    variants += [scene_of(texture=texture) for texture in TEXTURES[1:]]
    variants += [scene_of(tint=tint) for tint in TINTS[1:]]
    assert len({render(scene, 48).tobytes() for scene in variants}) == len(variants)


def test_sampled_images_depend_on_seed_and_index_only():
    many = sample_images(3, 8, 32)
    assert many.shape == (8, 32, 32, 3)
    np.testing.assert_array_equal(sample_images(3, 5, 32), many[:5])
    assert (sample_images(4, 5, 32) != many[:5]).any()


def test_sampled_images_show_all_words_and_no_held_out_combination():
    found = [[(obj.shape, obj.color) for obj in detect(image)] for image in sample_images(0, 400, 48)]
    assert {shape for kinds in found for shape, _ in kinds} == set(ALL_SHAPES)
    assert {color for kinds in found for _, color in kinds} == set(ALL_COLORS)
    assert not any(held_out(kinds) for kinds in found)
    assert {obj.shape for image in sample_images(0, 100, 48, DEFAULT_VOCABULARY) for obj in detect(image)} == set(
        DEFAULT_VOCABULARY.shapes
    )


def test_objects_at_the_border_are_clipped():
    image = render(Scene((SceneObject("square", "blue", "large", 0.0, 1.0),), Background("plain", "paper")), 48)
    assert image[-1, 0, 2] > 2 * image[-1, 0, 0]


def test_too_small_images_are_refused():
    with pytest.raises(JanusError, match="image_size is 8"):
        render(sample_scene(np.random.default_rng(0), category=Category.COLORS), 8)
