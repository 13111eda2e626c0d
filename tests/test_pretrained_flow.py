"""`Pretrained` with JanusFlow."""

import numpy as np
import pytest

from checkpoints_convert import convert
from janus_jax import load
from janus_jax.errors import JanusError
from tests import tiny
from tests.checkpoints_convert.checkpoints import save_flow_with_tokenizer

QUESTION = [{"role": "user", "content": "<image_placeholder>\nWhat is in the picture?", "images": [tiny.picture(0)]}]


@pytest.fixture(scope="module")
def flow():
    return tiny.pretrained(config=tiny.FLOW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_flow_with_tokenizer(tmp_path_factory.mktemp("models"))


def pixels(images):
    return np.stack([np.asarray(image) for group in images for image in group])


@pytest.mark.slow
def test_released_and_converted_folders_load_the_same_model(folder):
    vae = folder.parent / "sdxl-vae"
    convert(folder, folder.parent / "converted", vae=vae)
    released = load(folder, "float32", vae=vae)
    converted = load(folder.parent / "converted", "float32")
    assert released.chat(QUESTION, max_new_tokens=8) == converted.chat(QUESTION, max_new_tokens=8)
    images = [pixels(model.generate("A red boat", steps=2)) for model in (released, converted)]
    np.testing.assert_array_equal(*images)
    assert images[0].shape == (1, 32, 32, 3)


def test_model_without_vae_answers_and_reports_the_missing_vae(folder):
    model = load(folder, "float32")
    assert isinstance(model.chat(QUESTION, max_new_tokens=4), str)
    with pytest.raises(JanusError, match=r"has no VAE .*--vae DIR"):
        model.generate("A red boat")


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2])
def test_images_do_not_depend_on_the_batch(flow, batch_size):
    prompts = ["A red boat", "Ink"]
    expected = flow.generate(prompts, images_per_prompt=2, seed=4, steps=2)
    actual = flow.generate(prompts, images_per_prompt=2, seed=4, steps=2, batch_size=batch_size)
    assert np.abs(pixels(actual).astype(int) - pixels(expected)).max() <= 1


def test_sample_images_equals_generate(flow):
    expected = flow.generate(["A red boat", "Ink"], images_per_prompt=2, seed=4, steps=2)
    at_once = flow.sample_images(["Ink", "A red boat"], [(1, 1), (0, 0)], seed=4, steps=2)
    for image, other in zip(at_once, (expected[1][1], expected[0][0]), strict=True):
        assert np.abs(np.asarray(image, int) - np.asarray(other, int)).max() <= 1


def test_images_depend_on_seed_and_settings(flow):
    settings = ({}, {}, {"seed": 1}, {"steps": 3}, {"guidance_scale": 4.0}, {"sampler": "heun"})
    first, again, *others = (pixels(flow.generate("Ink", **{"steps": 2} | given)) for given in settings)
    assert (first == again).all()
    for other in others:
        assert (first != other).any()


def test_setting_of_another_sampler_is_reported(flow):
    with pytest.raises(JanusError, match="has no setting top_k; its settings are guidance_scale, steps, sampler"):
        flow.generate("Ink", top_k=1)
    with pytest.raises(JanusError, match="has no setting steps"):
        tiny.pretrained().generate("Ink", steps=3)
