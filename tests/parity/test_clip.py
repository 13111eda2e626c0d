"""Compares CLIP with transformers, for random weights."""

import json

import numpy as np
import pytest

from checkpoints_convert.tensor_files import open_tensors
from janus_jax.evaluation.metrics.clip import CLIP, clip_config, clip_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_embeddings_match_transformers(tmp_path, activation):
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=TOWER
        | {"vocab_size": 99, "max_position_embeddings": 9, "hidden_act": activation, "eos_token_id": 98},
        vision_config=TOWER | {"image_size": 24, "patch_size": 8, "hidden_act": activation},
        projection_dim=16,
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Noise, because biases are initialized to 0 and norm scales to 1.
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    ids = np.array([[97, 5, 6, 98, 0, 0, 0, 0, 0], [97, 1, 2, 3, 4, 5, 6, 7, 98]])
    pixels = np.random.default_rng(0).standard_normal((2, 24, 24, 3), np.float32)
    with torch.inference_mode():
        expected = model(
            input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        )
    config = clip_config(json.loads((tmp_path / "config.json").read_text()))
    params = clip_params(open_tensors(tmp_path / "model.safetensors"), config)
    images, texts = CLIP(config).apply({"params": params}, pixels, ids, np.array([3, 8]))
    np.testing.assert_allclose(images, expected.image_embeds, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(texts, expected.text_embeds, rtol=1e-4, atol=1e-5)
