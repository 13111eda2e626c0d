"""The encoder that begins as principal components is a linear map of each patch, which keeps what is in the images."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.shapes import tokenizer_metrics as world
from examples.shapes.dataset import images
from janus_jax.errors import JanusError
from janus_jax.models.backbone import to_pixels
from janus_jax.training.image_tokenizer.pca_init import beside_constant, check_principal, components, half_whitened
from janus_jax.training.image_tokenizer.vq import TokenizerTraining, run
from tests.training.image_tokenizer.recipes import KEPT_IN_USE, MODEL

CONFIG = replace(MODEL, base_channels=12, channel_multipliers=(1, 2, 4), z_channels=24, codebook_size=256, code_dim=8)
GRID, SIDE = CONFIG.grid_size, CONFIG.downsampling

RECIPE = replace(
    KEPT_IN_USE,
    model=CONFIG,
    architecture=replace(KEPT_IN_USE.architecture, encoder_start="principal"),
)


@pytest.fixture(scope="module")
def pictures():
    return images(0, 64, CONFIG.image_size)


@pytest.fixture(scope="module")
def pixels(pictures):
    return to_pixels(jnp.asarray(pictures))


@pytest.fixture(scope="module")
def training():
    return TokenizerTraining(RECIPE)


@pytest.fixture(scope="module")
def params(training, pictures):
    # A random start takes long to compile, and is silenced anyway.
    quiet = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, float("scale" in str(path[-1])), leaf.dtype),
        jax.eval_shape(training.init),
    )
    return jax.jit(training.start_from)(quiet, pictures).params


@pytest.fixture(scope="module")
def features(training, params):
    encode = lambda model, pixels: model.encoder(pixels)  # noqa: E731
    return jax.jit(lambda pixels: run(training.model, params, pixels, method=encode))


@pytest.fixture(scope="module")
def ids(training, params, pixels):
    return np.asarray(jax.jit(lambda pixels: run(training.model, params, pixels, method=training.model.encode))(pixels))


def patches(pixels):
    """Rows of the pixels of each patch."""
    squares = pixels.reshape(-1, GRID, SIDE, GRID, SIDE, 3).swapaxes(2, 3)
    return squares.reshape(-1, SIDE * SIDE * 3)


def test_components_are_those_of_the_covariance():
    deviations = jnp.array([1.0, 5.0, 3.0, 0.1])
    values = jax.random.normal(jax.random.key(0), (4000, 4)) * deviations + 2
    found = components(values, 2)
    np.testing.assert_allclose(found.mean, 2, atol=0.2)
    np.testing.assert_allclose(found.variances, [25, 9], rtol=0.1)
    np.testing.assert_allclose(jnp.abs(found.directions), np.eye(4)[:, 1:3], atol=0.05)


def test_half_whitened_components_stand_on_a_constant():
    deviations = jnp.array([9.0, 4.0, 1.0, 0.1, 0.1, 0.1])
    values = jax.random.normal(jax.random.key(0), (4000, 6)) * deviations + 4
    weight, bias = beside_constant(*half_whitened(values, 3))
    latents = values @ weight.T + bias
    np.testing.assert_allclose(latents.mean(axis=0), [0, 0, 0, 1], atol=1e-3)
    np.testing.assert_allclose(latents.std(axis=0), [1, 2 / 3, 1 / 3, 0], atol=0.03)


def test_features_are_as_far_apart_as_their_patches(features, pixels):
    rows, found = patches(pixels), features(pixels).reshape(-1, CONFIG.z_channels)
    apart, kept = (jnp.linalg.norm(x[:-1] - x[1:], axis=1) for x in (rows, found))
    assert bool(jnp.all(kept <= apart + 1e-2))
    assert float(jnp.sum(kept**2) / jnp.sum(apart**2)) > 0.97


def test_patches_can_be_made_again_from_their_features(features, pixels):
    rows, found = patches(pixels), features(pixels).reshape(-1, CONFIG.z_channels)
    known = jnp.concatenate([found, jnp.ones_like(found[:, :1])], axis=1)
    left = rows - known @ jnp.linalg.lstsq(known, rows)[0]
    assert float(jnp.var(left) / jnp.mean(jnp.var(rows, axis=0))) < 0.03


def test_what_a_patch_gives_does_not_depend_on_the_others(features, pixels):
    first = features(pixels[:1])[0, 0, 0]
    for other in (jnp.ones_like(pixels[:1]), -jnp.ones_like(pixels[:1]), pixels[1:2]):
        found = features(other.at[:, :SIDE, :SIDE].set(pixels[:1, :SIDE, :SIDE]))[0, 0, 0]
        np.testing.assert_allclose(found, first, atol=2e-4 * float(jnp.max(jnp.abs(first))))


def test_a_patch_has_one_code_in_all_images(pictures, ids):
    rows = world.patches_of(pictures, CONFIG.num_tokens).reshape(ids.size, -1)
    _, which = np.unique(rows, axis=0, return_inverse=True)
    pairs = np.unique(np.stack([which.reshape(-1), ids.reshape(-1)]), axis=1)
    assert pairs.shape[1] == which.max() + 1 < ids.size


def test_codes_tell_colours(pictures, ids):
    assert world.colour_determined(pictures, ids) > 0.95


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"base_channels": 2}, "base_channels 2"),
        ({"channel_multipliers": (1, 2, 2)}, r"channel_multipliers \(1, 2, 2\)"),
        ({"channel_multipliers": (1, 1, 2), "norm_groups": 12}, "norm_groups 12"),
        ({"z_channels": 16}, "16 outputs"),
    ],
)
def test_a_tokenizer_without_the_channels_is_refused(wrong, named):
    check_principal(CONFIG, CONFIG.z_channels)
    config = replace(CONFIG, **wrong)
    with pytest.raises(JanusError, match=named):
        check_principal(config, config.z_channels)
