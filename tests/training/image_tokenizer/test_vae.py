"""A VAE of principal components: latents of variance 1 that tell patches apart, and a decoder that learns pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert import open_checkpoint
from checkpoints_convert.convert import save_converted
from examples.shapes.dataset import images
from janus_jax.config import VAEConfig
from janus_jax.errors import JanusError
from janus_jax.models.backbone import to_pixels
from janus_jax.models.vae import VAE
from janus_jax.training.image_tokenizer.recipe import PixelWeights
from janus_jax.training.image_tokenizer.vae import VAERecipe, train_vae
from janus_jax.training.optimizers import OptimizerConfig

RECIPE = VAERecipe(
    model=VAEConfig(
        latent_channels=10,
        base_channels=6,
        channel_multipliers=(1, 2, 4),
        num_res_blocks=1,
        norm_groups=2,
        scaling_factor=1.0,
    ),
    image_size=24,
    steps=30,
    batch_size=8,
    principal_images=64,
    optimizer=OptimizerConfig(learning_rate=3e-3, muon_learning_rate=0.02),
    losses=PixelWeights(l2=1.0),
    report_every=10,
    save_every=15,
)


@pytest.fixture(scope="module")
def pictures():
    return images(0, 64, RECIPE.image_size)


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    return train_vae(RECIPE, pictures, tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def encoded(trained, pictures):
    model = VAE(RECIPE.model)
    return jax.jit(lambda params, pixels: model.apply({"params": params}, pixels, method=model.encode))(
        trained[0], to_pixels(jnp.asarray(pictures))
    )


def test_latents_have_variance_1_and_the_deviation_that_was_asked_for(encoded):
    assert encoded.mean.shape == (64, 6, 6, 10)
    variances = np.asarray(encoded.mean).var(axis=(0, 1, 2))
    assert variances.mean() == pytest.approx(1, rel=1e-3)
    assert list(variances) == sorted(variances, reverse=True)
    np.testing.assert_allclose(jnp.exp(encoded.log_variance / 2), RECIPE.deviation, rtol=1e-4)


def test_latents_are_uncorrelated_and_tell_most_of_a_patch(encoded, pictures):
    latents = np.asarray(encoded.mean).reshape(-1, 10)
    off_diagonal = np.corrcoef(latents, rowvar=False) - np.eye(10)
    assert np.abs(off_diagonal).max() < 1e-2
    patches = np.asarray(to_pixels(jnp.asarray(pictures))).reshape(64, 6, 4, 6, 4, 3).swapaxes(2, 3).reshape(-1, 48)
    patches = patches - patches.mean(axis=0)
    _, left, *_ = np.linalg.lstsq(latents, patches, rcond=None)
    assert left.sum() < 0.1 * np.square(patches).sum()


def test_the_decoder_learns_pixels(trained, pictures, tmp_path):
    before = train_vae(dataclasses.replace(RECIPE, steps=1), pictures, tmp_path)[1]
    assert trained[1]["loss"] < before["loss"] / 2


def test_it_can_be_kept_and_read_again(trained, tmp_path):
    save_converted(tmp_path / "vae", {"vae": trained[0]}, RECIPE.model)
    opened = open_checkpoint(tmp_path / "vae")
    assert opened.config == RECIPE.model
    read = {keys[1:]: array for keys, _, array in opened.params("float32")}
    np.testing.assert_array_equal(read["quant_conv", "weight"], trained[0]["quant_conv"]["weight"])


@pytest.mark.slow
def test_a_run_in_two_goes_is_the_run_in_one(trained, pictures, tmp_path):
    train_vae(dataclasses.replace(RECIPE, steps=15), pictures, tmp_path)
    params, _ = train_vae(RECIPE, pictures, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, trained[0])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"image_size": 26}, "image_size 26 is not a multiple of 4"),
        ({"deviation": 0.0}, "deviation 0.0"),
        ({"ema_decay": 1.0}, "ema_decay 1.0"),
        ({"model": dataclasses.replace(RECIPE.model, latent_channels=4)}, "8 outputs"),
        ({"model": dataclasses.replace(RECIPE.model, latent_channels=11)}, "latent_channels 11, but of .* 10 come"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(wrong, told):
    with pytest.raises(JanusError, match=told):
        dataclasses.replace(RECIPE, **wrong)


def test_images_of_another_size_are_refused(pictures, tmp_path):
    with pytest.raises(JanusError, match="of 24 by 24"):
        train_vae(RECIPE, pictures[:, :20], tmp_path)
