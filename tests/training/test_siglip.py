"""The encoder learns which caption belongs to which picture, and goes on where it stopped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import SiglipConfig
from janus_jax.errors import JanusError
from janus_jax.models.siglip import Siglip
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.siglip import ContrastiveRecipe, sigmoid_loss, train_encoder

RECIPE = ContrastiveRecipe(
    encoder=SiglipConfig(image_size=8, patch_size=4, width=32, depth=1, num_heads=2, mlp_dim=64),
    vocab_size=9,
    steps=60,
    batch_size=8,
    optimizer=OptimizerConfig(learning_rate=5e-3),
    text_depth=1,
    width=16,
    report_every=10,
    save_every=20,
)


def pairs():
    """Grey pictures, and a word for each grey."""
    greys = np.arange(8)
    images = np.broadcast_to((greys * 32)[:, None, None, None], (8, 8, 8, 3)).astype(np.uint8)
    return images, np.stack([greys + 1, np.zeros(8, int)], axis=1).astype(np.int32)


def test_the_loss_is_that_of_every_pair_by_itself():
    logits = jnp.array([[2.0, -1.0], [0.5, 3.0]])
    wanted = -np.log(1 / (1 + np.exp(-np.array([2.0, 1.0, -0.5, 3.0])))).sum() / 2
    assert sigmoid_loss(logits) == pytest.approx(wanted, rel=1e-6)


def test_captions_find_their_pictures(tmp_path):
    params, figures = train_encoder(RECIPE, *pairs(), tmp_path)
    assert figures["retrieval"] == 1.0
    assert set(params) == {"patch_embed", "pos_embed", "blocks", "norm"}


def test_patches_left_to_themselves_tell_nothing_of_one_another(tmp_path):
    params, figures = train_encoder(dataclasses.replace(RECIPE, patchwise=True), *pairs(), tmp_path)
    assert figures["retrieval"] == 1.0
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3))
    changed = pixels.copy()
    changed[:, :4, :4] = 0  # the first patch
    one, other = (np.asarray(Siglip(RECIPE.encoder).apply({"params": params}, image)) for image in (pixels, changed))
    assert np.abs(one - other)[:, 0].max() > 0.1
    np.testing.assert_array_equal(one[:, 1:], other[:, 1:])


@pytest.mark.slow
def test_a_run_in_two_goes_is_the_run_in_one(tmp_path):
    whole, _ = train_encoder(RECIPE, *pairs(), tmp_path / "whole")
    half = dataclasses.replace(RECIPE, steps=30)
    train_encoder(half, *pairs(), tmp_path / "parts")
    rest, _ = train_encoder(RECIPE, *pairs(), tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, rest)


def test_too_few_pairs_are_refused(tmp_path):
    images, captions = pairs()
    with pytest.raises(JanusError, match="8 images and 3 captions"):
        train_encoder(RECIPE, images, captions[:3], tmp_path)
