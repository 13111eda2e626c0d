from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from examples.shapes.dataset import (
    DEFAULT_VOCABULARY,
    FULL_VOCABULARY,
    Background,
    Category,
    Scene,
    SceneObject,
    Split,
    detect,
    render,
    sample_prompts,
    sample_scene,
    score_images,
)
from examples.shapes.dataset.detector import UNKNOWN
from janus_jax.errors import JanusError


def kinds_of(scene):
    return Counter((obj.shape, obj.color) for obj in scene.objects)


def found_in(image):
    return Counter((obj.shape, obj.color) for obj in detect(image))


def fraction_detected(count, size, change=lambda image: image):
    correct = 0
    for index in range(count):
        category = (None, *Category)[index % 7]
        scene = sample_scene(np.random.default_rng((5, index)), FULL_VOCABULARY, tuple(Split)[index % 2], category)
        correct += found_in(change(render(scene, size))) == kinds_of(scene)
    return correct / count


def blurred(image):
    return ndimage.gaussian_filter(image.astype(np.float32), (1, 1, 0)).round().astype(np.uint8)


def coarse(image):
    side = len(image)
    small = Image.fromarray(image).resize((side * 5 // 8,) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def noisy(image):
    noise = np.random.default_rng(0).normal(0, 8, image.shape)
    return np.clip(blurred(image) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("vocabulary", "split"), [(DEFAULT_VOCABULARY, Split.TEST), (FULL_VOCABULARY, Split.TRAIN)])
def test_rendered_scenes_are_detected_in_every_category(vocabulary, split):
    asked = sample_prompts(split, 170, seed=1, vocabulary=vocabulary)
    scores = score_images(asked, [render(prompt.scene, 48) for prompt in asked])
    assert len(asked) > 1000
    assert min(scores.strict.by_category.values()) >= 0.99
    assert min(scores.geneval.by_category.values()) >= 0.99


@pytest.mark.parametrize("size", [32, 48, 64, 100, 384])
def test_scenes_are_detected_at_any_size(size):
    assert fraction_detected(140, size) >= 0.99


@pytest.mark.parametrize("change", [blurred, coarse, noisy])
def test_detection_is_robust_to_tokenizer_artifacts(change):
    assert fraction_detected(560, 48, change) >= 0.98


def test_boxes_match_the_objects():
    for index in range(30):
        scene = sample_scene(np.random.default_rng(index), category=Category.COLORS)
        (obj,), (found,) = scene.objects, detect(render(scene, 48))
        assert abs(found.center[0] - obj.x) < 0.04
        assert abs(found.center[1] - obj.y) < 0.04
        assert abs((found.box[2] - found.box[0]) - obj.diameter) < 0.1


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_image_has_no_detections(value):
    assert detect(np.full((48, 48, 3), value, np.uint8)) == []


def test_noise_and_bars_match_no_shape():
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    assert all(obj.shape == UNKNOWN for obj in detect(noise))
    bar = np.full((48, 48, 3), 240, np.uint8)
    bar[20:25] = (222, 46, 52)
    assert [(obj.shape, obj.color) for obj in detect(bar)] == [(UNKNOWN, "red")]


def test_touching_objects_are_separated():
    pair = (SceneObject("square", "red", "large", 0.36, 0.5), SceneObject("square", "blue", "large", 0.62, 0.5))
    scene = Scene(pair, Background("plain", "paper"))
    assert found_in(render(scene, 48)) == kinds_of(scene)


def test_detections_stay_in_the_vocabulary():
    scene = Scene((SceneObject("heart", "pink", "large", 0.5, 0.5),), Background("plain", "paper"))
    (found,) = detect(render(scene, 48), DEFAULT_VOCABULARY)
    assert found.shape in (*DEFAULT_VOCABULARY.shapes, UNKNOWN)
    assert found.color in DEFAULT_VOCABULARY.colors


@pytest.mark.parametrize("image", [np.zeros((48, 48), np.uint8), np.zeros((48, 48, 3), np.float32)])
def test_other_arrays_are_refused(image):
    with pytest.raises(JanusError, match="in uint8"):
        detect(image)
