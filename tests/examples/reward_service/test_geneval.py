"""GenEval's rule, and the reward with a detector that is not a network."""

import numpy as np
import pytest

from examples.reward_service import detector
from examples.reward_service.geneval import Detection, fulfilled, relations
from janus_jax.errors import JanusError
from janus_jax.rewards import make_reward

LEFT, RIGHT = (0, 40, 20, 60), (70, 40, 90, 60)
CAT, DOG = Detection("cat", 0.9, LEFT), Detection("dog", 0.8, RIGHT)


def one(label, count=1, **more):
    return {"class": label, "count": count, **more}


def red(detection):
    return "red"


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([one("cat")], [], [True]),
        ([one("cat"), one("dog")], [], [True, True]),
        ([one("cat", 2)], [], [False]),
        ([one("cat"), one("cow")], [], [True, False]),
        ([one("cat")], [one("cat", 2)], [True, True]),
        ([one("cat")], [one("dog", 1)], [True, False]),
        ([one("cat", color="red")], [], [True]),
        ([one("cat", color="blue")], [], [False]),
        ([one("cat"), one("dog", position=["right of", 0])], [], [True, True]),
        ([one("cat"), one("dog", position=["left of", 0])], [], [True, False]),
        ([one("cow"), one("dog", position=["left of", 0])], [], [False, False]),
    ],
)
def test_requirements_are_checked_one_by_one(include, exclude, expected):
    assert fulfilled({"include": include, "exclude": exclude}, [DOG, CAT], red) == expected


def test_only_the_most_certain_objects_need_the_color():
    found = [CAT._replace(score=0.3), CAT._replace(score=0.9)]
    include = [one("cat", color="red")]
    assert fulfilled({"include": include}, found, lambda cat: "red" if cat.score > 0.5 else "blue") == [True]


def test_relations_need_distance():
    assert relations(LEFT, RIGHT) == {"left of"}
    assert relations((0, 0, 20, 20), (70, 70, 90, 90)) == {"left of", "above"}
    assert relations((30, 40, 50, 60), (31, 41, 51, 61)) == set()


@pytest.mark.parametrize("metadata", [{}, {"include": [{"count": 1}]}, {"include": [one("cat", position="left")]}])
def test_malformed_metadata_is_refused(metadata):
    with pytest.raises(JanusError, match="metadata"):
        fulfilled(metadata, [CAT], red)


@pytest.fixture
def reward(monkeypatch):
    """The reward with a detector that finds a cat in dark images, and a cat and a dog in bright ones."""

    def detect(images):
        return [[CAT, DOG] if np.mean(image) > 100 else [CAT] for image in images]

    monkeypatch.setattr(detector, "load_detector", lambda options: detect)
    monkeypatch.setattr(detector, "load_classifier", lambda options: lambda image, label: f"{image.size}")
    return lambda **options: make_reward("examples.reward_service.detector:geneval", {"detector": "none", **options})


def test_the_reward_scores_each_image_by_its_metadata(reward):
    images = np.stack([np.full((64, 96, 3), value, np.uint8) for value in (0, 200)])
    metadata = [{"include": [one("cat"), one("dog")]}] * 2
    assert reward()(["a cat and a dog"] * 2, images, metadata).tolist() == [0, 1]
    assert reward(partial=True)(["a cat and a dog"] * 2, images, metadata).tolist() == [0.5, 1]


def test_the_color_is_that_of_the_object_alone(reward):
    metadata = [{"include": [one("cat", color="(20, 20)")]}]
    assert reward()(["a cat"], np.zeros((1, 64, 96, 3), np.uint8), metadata).tolist() == [1]
