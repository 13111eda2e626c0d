"""Tests of the CLIP score with random weights. tests/parity compares the network with transformers."""

import json

import numpy as np
import pytest
import tokenizers
from PIL import Image
from safetensors.numpy import save_file

from janus_jax.errors import JanusError
from janus_jax.evaluation.generation import mjhq
from janus_jax.evaluation.metrics import clip_score
from janus_jax.evaluation.metrics.clip import CLIP, clip_config, clip_params, clip_shapes
from tests.evaluation.generation.fakes import run_benchmark

TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
CONFIG = {
    "projection_dim": 8,
    "text_config": TOWER | {"vocab_size": 60, "max_position_embeddings": 6},
    "vision_config": TOWER | {"image_size": 8, "patch_size": 4, "hidden_act": "gelu"},
}
END = 59


def write_clip(folder):
    """Writes a model in the layout of Hugging Face transformers. Its text tokens are letters."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(43)
    shapes = {".".join(path): shape for path, shape in clip_shapes(clip_config(CONFIG)).items()}
    tensors = {name: 0.3 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    letters = {letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789")}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters | {"<s>": 58, "</s>": END}, "a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 58), ("</s>", END)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    write_clip(folder / "clip")
    entries = {f"{n}": {"category": "art", "prompt": prompt} for n, prompt in enumerate(["ab", "cdefghijkl"])}
    (folder / "meta_data.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.slow
def test_the_score_is_the_mean_of_nonnegative_cosines(data, tmp_path):
    requests, answers = run_benchmark(mjhq.BENCHMARK, data, tmp_path / "out")
    score = mjhq.BENCHMARK.score(requests, answers, {"fid": "clean"})
    config = clip_config(CONFIG)
    params = clip_params(clip_score.open_tensors(data / "clip"), config)
    preprocess = clip_score.ImagePreprocessor(8, clip_score._MEAN, clip_score._STD)
    cosines = []
    # The second prompt is truncated, but keeps its end of text.
    for request, ids in zip(requests, ([58, 0, 1, END], [58, 2, 3, 4, 5, END]), strict=True):
        pixels = preprocess(answers[request.id])[None]
        image, text = CLIP(config).apply({"params": params}, pixels, np.array([ids]), np.array([len(ids) - 1]))
        cosines.append(float((image * text).sum()))
    assert score == {"clip": pytest.approx(np.mean([100 * max(cosine, 0) for cosine in cosines]), rel=1e-4)}
    assert min(cosines) < 0 < max(cosines)


def test_an_image_is_resized_cropped_and_normalized(tmp_path):
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 6:14] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image = clip_score.ImagePreprocessor(8, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))(tmp_path / "wide.png")
    assert image.shape == (8, 8, 3)
    np.testing.assert_allclose(image, np.broadcast_to([2, 1, 0.5], image.shape))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", {"text_config": {"hidden_act": "relu"}}, r"config.json: hidden_act is 'relu'; it must be one"),
        ("config.json", CONFIG | {"projection_dim": 9}, r"model.safetensors: The tensor text_projection.weight has"),
        ("config.json", CONFIG | {"projection_dim": "x"}, r"config.json: projection_dim is 'x'"),
        ("tokenizer.json", {}, r"tokenizer.json is not a usable tokenizer"),
        ("preprocessor_config.json", {"image_mean": [1]}, r"preprocessor_config.json: image_mean and image_std must"),
    ],
)
def test_a_malformed_file_is_reported(data, name, content, message):
    (data / "clip" / name).write_text(json.dumps(content))
    with pytest.raises(JanusError, match=message):
        clip_score.CLIPScorer(data / "clip")
