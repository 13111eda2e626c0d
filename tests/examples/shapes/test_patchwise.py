"""A patch-wise encoder is the released architecture, and looks at nothing but the patch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models.vq import VQTokenizer
from janus_jax.training.image_tokenizer.receptive_field import encoder_reach, reach_mask, within_reach
from tests.training.image_tokenizer.recipes import MODEL

TOKENIZER = VQTokenizer(MODEL)
SIDE = MODEL.downsampling


@pytest.fixture(scope="module")
def params():
    pixels = jnp.zeros((1, MODEL.image_size, MODEL.image_size, 3))
    return nn.unbox(TOKENIZER.init(jax.random.key(0), pixels)["params"])


@pytest.fixture(scope="module")
def pixels():
    return jax.random.uniform(jax.random.key(1), (2, MODEL.image_size, MODEL.image_size, 3), minval=-1)


def latents(params, pixels):
    return TOKENIZER.apply({"params": params}, pixels, method=TOKENIZER.latents)


def mirrored_patches(pixels):
    """The same patches in the reverse order: no statistic over an image changes."""
    rows, side, _, channels = pixels.shape
    grid = side // SIDE
    patches = pixels.reshape(rows, grid, SIDE, grid, SIDE, channels)
    return patches[:, ::-1, :, ::-1].reshape(pixels.shape)


def test_codes_of_patches_do_not_depend_on_where_they_lie(params, pixels):
    patchwise = within_reach(params, reach_mask(params, "patch"))
    expected = latents(patchwise, pixels)[:, ::-1, ::-1]
    np.testing.assert_allclose(latents(patchwise, mirrored_patches(pixels)), expected, atol=1e-4)


def test_those_of_the_full_reach_do(params, pixels):
    full = within_reach(params, reach_mask(params, "full"))
    moved = latents(full, mirrored_patches(pixels))
    assert float(jnp.max(jnp.abs(moved - latents(full, pixels)[:, ::-1, ::-1]))) > 0.1


def test_leaving_the_zeros_out_changes_nothing(params, pixels):
    patchwise = within_reach(params, reach_mask(params, "patch"))
    expected = TOKENIZER.apply({"params": patchwise}, pixels)
    with encoder_reach("patch"):
        found = TOKENIZER.apply({"params": patchwise}, pixels)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_decoder_keeps_its_reach(params):
    mask = reach_mask(params, "patch")
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(mask["decoder"]))
