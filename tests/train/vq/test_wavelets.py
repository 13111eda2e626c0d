"""The encoder that begins as wavelets is a linear map of each patch."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.models.vq import VQTokenizer
from janus_jax.train.vq.reach import reach_mask, within_reach
from janus_jax.train.vq.wavelets import as_wavelets, check_wavelets
from tests.train.vq.recipes import MODEL

CONFIG = replace(MODEL, base_channels=8, channel_multipliers=(1, 1, 2), z_channels=8, norm_groups=1)


@pytest.fixture(scope="module")
def features():
    model = VQTokenizer(CONFIG)
    params = nn.unbox(model.init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))["params"])
    params = params | {"encoder": as_wavelets(params["encoder"], CONFIG)}
    params = within_reach(params, reach_mask(params, "patch"))
    return jax.jit(lambda pixels: model.apply({"params": params}, pixels, method=lambda m, x: m.encoder(x)))


def image(seed):
    return jax.random.uniform(jax.random.key(seed), (1, 24, 24, 3), minval=-1)


def test_the_first_features_are_the_patch_s_colour(features):
    pixels = image(0)
    means = pixels.reshape(1, 6, 4, 6, 4, 3).mean(axis=(2, 4))
    found = features(pixels)[..., :3]
    # The last norm divides by what the constant channels settle.
    scale = float(jnp.sum(found * means) / jnp.sum(means**2))
    np.testing.assert_allclose(found, scale * means, atol=0.02)


def test_what_a_patch_gives_hardly_depends_on_the_others(features):
    pixels = image(1)
    other = image(2).at[:, :4, :4].set(pixels[:, :4, :4])
    first, second = features(pixels)[0, 0, 0], features(other)[0, 0, 0]
    assert float(jnp.max(jnp.abs(first - second))) < 0.03 * float(jnp.max(jnp.abs(first)))


def test_differences_within_a_patch_are_seen(features):
    pixels = image(3)
    turned = pixels.reshape(1, 6, 4, 6, 4, 3)[:, :, ::-1, :, ::-1].reshape(pixels.shape)
    change = features(turned) - features(pixels)
    np.testing.assert_allclose(change[..., :3], 0, atol=2e-3)
    assert float(jnp.max(jnp.abs(change[..., 3:]))) > 0.01


def test_a_tokenizer_without_the_channels_is_refused():
    with pytest.raises(JanusError, match="base_channels 4"):
        check_wavelets(MODEL)
    check_wavelets(CONFIG)
