"""The judge selects the best of several candidates, which are images that the model generates anyway."""

import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.generation.best_of import BestOf
from janus_jax.generation.image_sampler import GeneratedImage
from tests import tiny
from tests.evaluation.generation.fakes import FakeImageModel, expected_pixels

PROMPTS = ("boat", "bird")
METADATA = ({"wanted": 2}, {"wanted": 0})


def flat(value):
    return Image.fromarray(np.full((2, 2, 3), value, np.uint8))


def brightness(prompts, images, metadata):
    return images.mean(axis=(1, 2, 3))


def test_the_best_candidate_of_each_image_is_selected():
    values = [[3, 9, 1, 5, 6, 7], [8, 2, 8, 0, 0, 1]]
    candidates = [
        GeneratedImage(prompt, number, flat(value))
        for prompt, row in enumerate(values)
        for number, value in enumerate(row)
    ]
    for batch_size in (1, 4, 100):
        found = list(BestOf(3, brightness).stream(candidates, PROMPTS, METADATA, batch_size))
        assert [(one.prompt, one.number, one.score) for one in found] == [(0, 0, 9), (0, 1, 7), (1, 0, 8), (1, 1, 1)]
        assert [np.asarray(one.image)[0, 0, 0] for one in found] == [9, 7, 8, 1]
        assert [one.candidate for one in found] == [1, 5, 0, 5]


def test_candidates_are_yielded_as_soon_as_they_are_scored():
    read = []

    def candidates():
        for number in range(6):
            read.append(number)
            yield GeneratedImage(0, number, flat(number))

    next(BestOf(2, brightness).stream(candidates(), PROMPTS, METADATA, batch_size=1))
    assert read == [0, 1]


def test_the_judge_gets_prompts_and_metadata_of_each_candidate():
    def wanted(prompts, images, metadata):
        assert prompts == ["boat"] * 4 + ["bird"] * 4
        numbers = [0, 1, 2, 3] * 2
        return np.array([float(number == one["wanted"]) for number, one in zip(numbers, metadata, strict=True)])

    candidates = [GeneratedImage(prompt, number, flat(number)) for prompt in range(2) for number in range(4)]
    found = BestOf(4, wanted).stream(candidates, PROMPTS, METADATA, batch_size=100)
    assert [np.asarray(one.image)[0, 0, 0] for one in found] == [2, 0]


def test_the_candidates_of_a_benchmark_have_their_own_numbers():
    model = FakeImageModel()
    images = BestOf(3, brightness).sample(model, PROMPTS, [(4, 1), (5, 0)], METADATA, 7)
    for image, prompt, index, first in zip(images, PROMPTS, (4, 5), (3, 0), strict=True):
        candidates = [expected_pixels(prompt, (index, number), 7) for number in range(first, first + 3)]
        np.testing.assert_array_equal(image, max(candidates, key=np.mean))


@pytest.mark.parametrize("number", [0, -1, 1.5])
def test_wrong_numbers_are_refused(number):
    with pytest.raises(JanusError, match=f"best_of is {number}; it must be a positive whole number"):
        BestOf(number, brightness)


@pytest.mark.slow
def test_a_model_generates_the_best_of_its_images():
    janus = tiny.pretrained()
    candidates = janus.generate(PROMPTS, 4, seed=3)
    best = janus.generate(PROMPTS, 2, seed=3, best_of=2, judge=brightness)
    for images, chosen in zip(candidates, best, strict=True):
        pixels = [np.asarray(image) for image in images]
        np.testing.assert_array_equal(chosen[0], max(pixels[:2], key=np.mean))
        np.testing.assert_array_equal(chosen[1], max(pixels[2:], key=np.mean))
    with pytest.raises(JanusError, match="judge nobody is unknown"):
        janus.generate(PROMPTS, 2, best_of=2, judge="nobody")
    with pytest.raises(JanusError, match=r"The reward half returned values of shape \[4\] for 8 images"):
        janus.generate(PROMPTS, 2, best_of=2, judge=half)


def half(prompts, images, metadata):
    return [1.0] * (len(images) // 2)
