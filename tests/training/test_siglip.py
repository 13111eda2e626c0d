"""Training of an understanding encoder on images and captions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import SiglipConfig
from janus_jax.models.siglip import Siglip
from janus_jax.sharding import make_mesh
from janus_jax.training.array_batches import ArrayBatches, BatchSplit
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.siglip import SiglipRecipe, siglip_task, sigmoid_loss
from janus_jax.training.trainer import train

RECIPE = SiglipRecipe(
    encoder=SiglipConfig(image_size=8, patch_size=4, width=32, depth=1, num_heads=2, mlp_dim=64),
    vocab_size=9,
    caption_length=2,
    steps=60,
    batch_size=8,
    optimizer=OptimizerConfig(learning_rate=5e-3),
    text_depth=1,
    width=16,
    report_every=10,
    save_every=20,
)


def run(recipe, workdir, **options):
    """Trains on eight uniform images whose caption names their brightness."""
    levels = np.arange(8)
    images = np.broadcast_to((levels * 32)[:, None, None, None], (8, 8, 8, 3)).astype(np.uint8)
    captions = np.stack([levels + 1, np.zeros(8, int)], axis=1).astype(np.int32)
    split = BatchSplit(recipe.batch_size, recipe.seed)
    result = train(siglip_task(recipe, lambda: ArrayBatches((images, captions), split), **options), workdir)
    return result.state.params["und_encoder"], result.metrics


def test_the_loss_is_a_binary_cross_entropy_over_all_pairs():
    logits = jnp.array([[2.0, -1.0], [0.5, 3.0]])
    expected = -np.log(1 / (1 + np.exp(-np.array([2.0, 1.0, -0.5, 3.0])))).sum() / 2
    assert sigmoid_loss(logits) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mesh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_images_retrieve_their_captions(mesh, tmp_path):
    params, metrics = run(RECIPE, tmp_path, mesh=make_mesh() if mesh else None)
    assert metrics["retrieval"] == 1.0
    assert set(params) == {"patch_embed", "pos_embed", "blocks", "norm"}


def test_patchwise_features_do_not_depend_on_other_patches(tmp_path):
    params, metrics = run(dataclasses.replace(RECIPE, patchwise=True), tmp_path)
    assert metrics["retrieval"] == 1.0
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3))
    changed = pixels.copy()
    changed[:, :4, :4] = 0  # the first patch
    one, other = (np.asarray(Siglip(RECIPE.encoder).apply({"params": params}, image)) for image in (pixels, changed))
    assert np.abs(one - other)[:, 0].max() > 0.1
    np.testing.assert_array_equal(one[:, 1:], other[:, 1:])


@pytest.mark.slow
def test_a_resumed_run_is_bitwise_equal(tmp_path):
    whole, _ = run(RECIPE, tmp_path / "whole")
    run(dataclasses.replace(RECIPE, steps=30), tmp_path / "parts")
    rest, _ = run(RECIPE, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, rest)
