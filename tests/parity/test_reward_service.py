"""The reward service's example runs detectors and classifiers of transformers."""

import numpy as np
import pytest
from PIL import Image
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

from examples.reward_service.detector import GenEvalReward
from janus_jax.errors import JanusError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random detector in transformers' layout."""
    folder = tmp_path_factory.mktemp("yolos")
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        num_labels=2,
    )
    config.id2label, config.label2id = {0: "cat", 1: "dog"}, {"cat": 0, "dog": 1}
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessor(size={"height": 32, "width": 32}, do_pad=False).save_pretrained(folder)
    return str(folder)


def test_detections_have_labels_scores_and_boxes(folder):
    reward = GenEvalReward(folder, threshold=0.0)
    (found,) = reward._detect([Image.new("RGB", (48, 32))])
    assert found
    for label, score, box in found:
        assert label in ("cat", "dog")
        assert 0 < score < 1
        assert len(box) == 4
    images = np.zeros((2, 32, 48, 3), np.uint8)
    wanted = [{"include": [{"class": "cow", "count": 1}]}, {"include": [{"class": found[0].label, "count": 1}]}]
    assert reward(["", ""], images, wanted).tolist() == [0, 1]


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(JanusError, match=f"cannot load {tmp_path}"):
        GenEvalReward(str(tmp_path))
