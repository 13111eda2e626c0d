"""Initialization of the encoder as the PCA of image patches."""

import functools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.shapes import tokenizer_metrics
from examples.shapes.dataset import sample_images
from janus_jax.config import VAEConfig
from janus_jax.errors import JanusError
from janus_jax.models.backbone import apply, to_pixels
from janus_jax.models.vae import VAE
from janus_jax.training.image_tokenizer.patchwise import patchwise_encoder
from janus_jax.training.image_tokenizer.pca_init import (
    half_whitening,
    initialize_vae,
    initialize_vq,
    principal_components,
)
from janus_jax.training.image_tokenizer.task import Extensions, tokenizer_params, tokenizer_task
from janus_jax.training.image_tokenizer.vq import VQTraining
from janus_jax.training.trainer import DataStart
from tests.training.image_tokenizer.recipes import MOVING_AVERAGE

pytestmark = pytest.mark.slow

CONFIG = replace(
    MOVING_AVERAGE.model,
    base_channels=12,
    channel_multipliers=(1, 2, 4),
    z_channels=24,
    codebook_size=256,
    code_dim=8,
)
VAE_CONFIG = VAEConfig(
    latent_channels=10,
    base_channels=6,
    channel_multipliers=(1, 2, 4),
    num_res_blocks=1,
    norm_groups=2,
    scaling_factor=1.0,
)
RECIPE = replace(MOVING_AVERAGE, model=CONFIG)
GRID, SIDE = CONFIG.grid_size, CONFIG.downsampling
IMAGES = sample_images(0, 64, CONFIG.image_size)


def random_params(init):
    """Returns ones for scales and zeros for all other parameters, because random values take long to compile."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, float("scale" in str(path)), leaf.dtype), jax.eval_shape(init)
    )


@pytest.fixture(scope="module")
def pixels():
    return to_pixels(jnp.asarray(IMAGES))


@pytest.fixture(scope="module")
def training():
    return VQTraining(RECIPE)


@pytest.fixture(scope="module")
def params(training):
    state = random_params(training.init)
    initial = initialize_vq(CONFIG, IMAGES)(tokenizer_params(state))
    tokenizer = training._tokenizer_state(initial)
    return tokenizer_params(jax.jit(training.init_codebook)(state.replace(tokenizer=tokenizer), IMAGES))


@pytest.fixture(scope="module")
def features(training, params):
    return jax.jit(functools.partial(encode, training.model, params))


def encode(model, params, pixels):
    return model.apply({"params": params}, pixels, method=lambda model, pixels: model.encoder(pixels))


@pytest.fixture(scope="module")
def ids(training, params):
    return np.asarray(jax.jit(training.reconstruct)(params, IMAGES)[1])


def patches(pixels, side=SIDE):
    grid = pixels.shape[1] // side
    squares = pixels.reshape(-1, grid, side, grid, side, 3).swapaxes(2, 3)
    return squares.reshape(-1, side * side * 3)


def unexplained(values, features):
    """Returns the fraction of the variance of `values` that is not a linear function of the features."""
    design = jnp.concatenate([features, jnp.ones_like(features[:, :1])], axis=1)
    residual = values - design @ jnp.linalg.lstsq(design, values)[0]
    return float(jnp.var(residual) / jnp.mean(jnp.var(values, axis=0)))


def test_principal_components_are_those_of_the_covariance():
    deviations = jnp.array([1.0, 5.0, 3.0, 0.1])
    values = jax.random.normal(jax.random.key(0), (4000, 4)) * deviations + 2
    found = principal_components(values, 2)
    np.testing.assert_allclose(found.mean, 2, atol=0.2)
    np.testing.assert_allclose(found.variances, [25, 9], rtol=0.1)
    np.testing.assert_allclose(jnp.abs(found.directions), np.eye(4)[:, 1:3], atol=0.05)


def test_half_whitening_takes_square_roots_of_the_deviations():
    deviations = jnp.array([9.0, 4.0, 1.0, 0.1, 0.1, 0.1])
    values = jax.random.normal(jax.random.key(0), (4000, 6)) * deviations + 4
    weight, bias = half_whitening(values, 3)
    latents = values @ weight.T + bias
    np.testing.assert_allclose(latents.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(latents.std(axis=0), [1, 2 / 3, 1 / 3], atol=0.03)


def test_features_keep_distances_and_content_of_patches(features, pixels):
    values, found = patches(pixels), features(pixels).reshape(-1, CONFIG.z_channels)
    distances, kept = (jnp.linalg.norm(x[:-1] - x[1:], axis=1) for x in (values, found))
    assert bool(jnp.all(kept <= distances + 1e-2))
    assert float(jnp.sum(kept**2) / jnp.sum(distances**2)) > 0.97
    assert unexplained(values, found) < 0.03


def test_features_of_a_patch_do_not_depend_on_other_patches(features, pixels):
    first = features(pixels[:1])[0, 0, 0]
    for other in (jnp.ones_like(pixels[:1]), -jnp.ones_like(pixels[:1]), pixels[1:2]):
        found = features(other.at[:, :SIDE, :SIDE].set(pixels[:1, :SIDE, :SIDE]))[0, 0, 0]
        np.testing.assert_allclose(found, first, atol=2e-4 * float(jnp.max(jnp.abs(first))))


def test_equal_patches_have_equal_codes_and_codes_determine_colors(ids):
    values = tokenizer_metrics.patches_of(IMAGES, CONFIG.num_tokens).reshape(ids.size, -1)
    _, which = np.unique(values, axis=0, return_inverse=True)
    pairs = np.unique(np.stack([which.reshape(-1), ids.reshape(-1)]), axis=1)
    assert pairs.shape[1] == which.max() + 1 < ids.size
    assert tokenizer_metrics.color_determined(IMAGES, ids) > 0.95


def test_the_patchwise_encoder_has_the_same_output(training, params, pixels, features):
    with patchwise_encoder():
        found = encode(training.model, params, pixels)
    np.testing.assert_allclose(found, features(pixels), atol=1e-4 * float(jnp.max(jnp.abs(found))))


def test_vae_latents_are_uncorrelated_with_variance_one_and_constant_deviation(pixels):
    model = VAE(VAE_CONFIG)
    random = random_params(lambda: nn.unbox(model.init(jax.random.key(0), pixels[:1])["params"]))
    initial = initialize_vae(VAE_CONFIG, IMAGES, deviation=0.1)(random)
    latents = jax.jit(lambda pixels: apply(model.encode, initial, pixels))(pixels)
    means = np.asarray(latents.mean).reshape(-1, 10)
    variances = means.var(axis=0)
    assert variances.mean() == pytest.approx(1, rel=1e-3)
    assert list(variances) == sorted(variances, reverse=True)
    np.testing.assert_allclose(jnp.exp(latents.log_variance / 2), 0.1, rtol=1e-4)
    assert np.abs(np.corrcoef(means, rowvar=False) - np.eye(10)).max() < 1e-2
    assert unexplained(patches(pixels), jnp.asarray(means)) < 0.1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"base_channels": 2}, "base_channels 2"),
        ({"channel_multipliers": (1, 2, 2)}, r"channel_multipliers \(1, 2, 2\)"),
        ({"channel_multipliers": (1, 1, 2), "norm_groups": 12}, "norm_groups 12"),
        ({"z_channels": 16}, "16 outputs"),
    ],
)
def test_architectures_without_enough_channels_are_refused(wrong, message):
    with pytest.raises(JanusError, match=message):
        initialize_vq(replace(CONFIG, **wrong), IMAGES)


def test_too_many_vae_latents_are_refused():
    with pytest.raises(JanusError, match="latent_channels 11, but its last norm passes 10"):
        initialize_vae(replace(VAE_CONFIG, latent_channels=11), IMAGES)


def test_a_recipe_starts_from_the_components_of_its_images(training, pixels):
    recipe = replace(RECIPE, pca_images=64, codebook=replace(RECIPE.codebook, kmeans_images=0))
    task = tokenizer_task(recipe, extensions=Extensions(images=IMAGES, eval_images=IMAGES[:2]))
    with task.open_data(DataStart()) as data:
        found = encode(training.model, tokenizer_params(task.initial_state(data)), pixels)
        assert next(data)[0].shape == (recipe.batch_size, *IMAGES.shape[1:])
    assert unexplained(patches(pixels), found.reshape(-1, CONFIG.z_channels)) < 0.03
