"""CLIP score by its definition, of a CLIP with random numbers. Its network stands beside transformers' in
tests/parity."""

import json

import numpy as np
import pytest
import tokenizers
from PIL import Image
from safetensors.numpy import save_file

from janus_jax.errors import JanusError
from janus_jax.evaluation.generation import mjhq
from janus_jax.evaluation.metrics import clip_score as clip
from janus_jax.evaluation.metrics.clip import clip_config, embed_pictures, embed_texts, tensor_shapes
from tests.evaluation.generation.painting import draw

TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
CONFIG = {
    "projection_dim": 8,
    "text_config": TOWER | {"vocab_size": 60, "max_position_embeddings": 6},
    "vision_config": TOWER | {"image_size": 8, "patch_size": 4, "hidden_act": "gelu"},
}
END = 59


def put_clip(folder):
    """A folder in transformers' layout; its tokens are letters, between a begin- and an end-of-text."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(0)
    tensors = {name: 0.3 * rng.standard_normal(shape, np.float32) for name, shape in tensor_shapes(clip_config(CONFIG))}
    save_file(tensors, folder / "model.safetensors")
    letters = {letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789")}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters | {"<s>": 58, "</s>": END}, "a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 58), ("</s>", END)]
    )
    made.save(str(folder / "tokenizer.json"))
    return tensors


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    put_clip(folder / "clip")
    entries = {f"{n}": {"category": "art", "prompt": prompt} for n, prompt in enumerate(["ab", "cdefghijkl"])}
    (folder / "meta_data.json").write_text(json.dumps(entries))
    return folder


def test_the_score_is_the_mean_of_cosines_that_are_not_negative(data, tmp_path):
    pictures, answers = draw(mjhq.BENCHMARK, data, tmp_path / "out")
    score = mjhq.BENCHMARK.score(pictures, answers, {"fid": "clean"})
    config = clip_config(CONFIG)
    tensors = clip.open_tensors(data / "clip")
    # The second is cut to what the text encoder reads, its end-of-text kept.
    texts = [
        embed_texts(tensors, np.array([row]), np.array([len(row) - 1]), config)
        for row in ([58, 0, 1, END], [58, 2, 3, 4, 5, END])
    ]
    eyes = clip.Eyes(8, clip._MEAN, clip._DEVIATION)
    seen = [embed_pictures(tensors, eyes.see(answers[picture.id])[None], config) for picture in pictures]
    cosines = [float(np.sum(np.asarray(a) * np.asarray(b))) for a, b in zip(seen, texts, strict=True)]
    assert score == {"clip": pytest.approx(np.mean([100 * max(cosine, 0) for cosine in cosines]), rel=1e-4)}
    assert max(cosines) > 0


def test_a_picture_is_scaled_cut_and_normalised(tmp_path):
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 6:14] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    seen = clip.Eyes(8, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0)).see(tmp_path / "wide.png")
    assert seen.shape == (8, 8, 3)
    np.testing.assert_allclose(seen, np.broadcast_to([2, 1, 0.5], seen.shape))


def test_without_a_clip_there_is_no_score(tmp_path):
    assert clip.clip_score(tmp_path, [], []) is None


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", {"text_config": {"hidden_act": "relu"}}, r"config.json: hidden_act is 'relu'; it must be one"),
        ("config.json", CONFIG | {"projection_dim": 9}, r"model.safetensors: The tensor text_projection.weight is"),
        ("config.json", CONFIG | {"projection_dim": "x"}, r"config.json: projection_dim is 'x'"),
        ("tokenizer.json", {}, r"tokenizer.json is damaged"),
        ("preprocessor_config.json", {"image_mean": [1]}, r"preprocessor_config.json: image_mean and image_std must"),
    ],
)
def test_a_file_that_will_not_do_is_named(data, name, content, told):
    (data / "clip" / name).write_text(json.dumps(content))
    with pytest.raises(JanusError, match=told):
        clip.Judge(data / "clip")
