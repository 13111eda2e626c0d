"""Weight files of open_clip: embeddings are those that open_clip computes (tests/golden/make_open_clip.py)."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
from PIL import Image
from safetensors.numpy import save_file

from janus_jax.errors import JanusError
from janus_jax.evaluation.metrics import open_clip
from janus_jax.evaluation.metrics.clip import CLIP, clip_shapes
from janus_jax.evaluation.metrics.clip_score import CLIPScorer
from janus_jax.evaluation.metrics.open_clip import VIT_H_14, open_clip_config, open_clip_params
from janus_jax.rewards import clip, make_reward
from tests.golden.make_open_clip import FOLDER, pseudo_weight
from tests.golden.pseudo_weights import uniform

VALUES = json.loads((FOLDER / "open_clip_config.json").read_text())["model_cfg"]
CONFIG = open_clip_config(VALUES)
TENSORS = {name: pseudo_weight(name, shape) for name, shape in json.loads((FOLDER / "shapes.json").read_text()).items()}


def test_embeddings_are_those_of_open_clip():
    expected = np.load(FOLDER / "expected.npz")
    params = open_clip_params(TENSORS, CONFIG)
    pixels = uniform("pixels", (2, CONFIG.image_size, CONFIG.image_size, 3))
    last = expected["ids"].argmax(axis=1)
    images, texts = CLIP(CONFIG).apply({"params": params}, pixels, expected["ids"], last)
    np.testing.assert_allclose(images, expected["images"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(texts, expected["texts"], rtol=1e-4, atol=1e-5)


def test_hpsv2_has_the_size_of_its_published_file():
    shapes = clip_shapes(open_clip_config(VIT_H_14))
    # open_clip lists 986.11 million parameters, of which one is the temperature.
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 986_109_440


@pytest.fixture
def folder(tmp_path):
    """Weights of open_clip, and a tokenizer of letters."""
    shutil.copy(FOLDER / "open_clip_config.json", tmp_path)
    save_file(TENSORS, tmp_path / "open_clip_model.safetensors")
    words = {letter: number for number, letter in enumerate("abcdefgh")} | {"<s>": 97, "</s>": 98}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 97), ("</s>", 98)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.slow
def test_the_rewards_are_cosines(folder, monkeypatch):
    monkeypatch.setattr(open_clip, "VIT_H_14", VALUES)
    weights = folder / "open_clip_model.safetensors"
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), np.uint8)
    prompts = ["abc", "hgfedcbaabc", "d"]
    scorer = CLIPScorer(folder, weights)
    params = open_clip_params(TENSORS, CONFIG)
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        pixels = scorer.preprocess.prepare(Image.fromarray(image))[None]
        ids = np.array([[97, *("abcdefgh".index(letter) for letter in prompt[:7]), 98]])
        found, text = CLIP(CONFIG).apply({"params": params}, pixels, ids, np.array([ids.shape[1] - 1]))
        expected.append(float((found * text).sum()))
    for name in ("clip_score", "hps"):
        reward = make_reward(name, {"folder": str(folder), "weights": str(weights)})
        np.testing.assert_allclose(reward(prompts, images, [{}] * 3), expected, rtol=1e-4, atol=1e-5)
        # Without the config, the architecture is the built-in one.
        (folder / "open_clip_config.json").unlink(missing_ok=True)
        clip._scorer.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": "nowhere"}, "nowhere"),
        ({"folder": "nowhere", "weights": "absent.pt"}, "absent.pt does not exist"),
    ],
)
def test_missing_files_are_reported_before_the_run(options, message):
    with pytest.raises(JanusError, match=message):
        make_reward("clip_score", options)


def test_hps_needs_its_weights(folder):
    with pytest.raises(JanusError, match=r"needs the option weights, the file HPS_v2\.1_compressed\.pt"):
        make_reward("hps", {"folder": str(folder)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "model_cfg has no valid 'width'"),
        (VALUES | {"vision_cfg": {"timm_model_name": "vit"}}, "^The model is not a CLIP with two plain transformers"),
        (VALUES | {"vision_cfg": VALUES["vision_cfg"] | {"layers": [3, 4, 6, 3]}}, "not a CLIP with two plain"),
    ],
)
def test_other_architectures_are_refused(values, message):
    with pytest.raises(JanusError, match=message):
        open_clip_config(values)


def test_another_file_is_refused():
    tensors = {name: value for name, value in TENSORS.items() if name != "visual.proj"}
    with pytest.raises(
        JanusError, match=r"visual.proj is missing; expected the weights of CLIP in the layout of open_clip"
    ):
        open_clip_params(tensors, CONFIG)
