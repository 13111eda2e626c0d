"""The loop: what is trained when, what a resumed run makes, and what a mesh changes (nothing)."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.shapes.dataset import images
from janus_jax.errors import Diverged, JanusError
from janus_jax.sharding import make_mesh
from janus_jax.training.image_tokenizer.recipe import Data, WeightFiles
from janus_jax.training.image_tokenizer.trainer import train_tokenizer
from janus_jax.training.image_tokenizer.vq import TokenizerTraining
from janus_jax.training.preemption import Preemption
from tests.training.image_tokenizer.recipes import ADAM, KEPT_IN_USE, RECIPE

RECIPES = {"released": RECIPE, "kept in use": KEPT_IN_USE}


@functools.cache
def compiled(name):
    training = TokenizerTraining(RECIPES[name])
    return training, jax.jit(training.init)(), jax.jit(training.step)


@functools.cache
def pictures():
    return images(0, 8, 24)


def changed(before, after):
    return bool(
        max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    )


@pytest.mark.slow
def test_the_discriminator_and_its_loss_wait_for_their_start():
    _, state, step = compiled("released")
    for number in range(4):
        before = state.discriminator
        state, scalars = step(state, pictures(), {})
        assert changed(before, state.discriminator) == (number >= 2)
        assert (float(scalars["loss/adversarial"]) != 0) == (number >= 2)


@pytest.mark.slow
def test_the_average_follows_the_weights():
    _, state, step = compiled("released")
    new, _ = step(state, pictures(), {})
    weight = lambda params: params["decoder"]["conv_out"]["kernel"]  # noqa: E731
    # The first steps count for more than the decay says: (1 + 0) / (10 + 0) of the start stays.
    np.testing.assert_allclose(weight(new.ema), 0.1 * weight(state.params) + 0.9 * weight(new.params), rtol=1e-5)


@pytest.mark.slow
def test_a_patchwise_encoder_stays_one():
    training, state, step = compiled("kept in use")
    state = jax.jit(training.start_from)(state, pictures())
    new, scalars = step(state, pictures(), {})
    kernel = np.array(new.params["encoder"]["conv_in"]["kernel"])
    assert changed(state.params["encoder"], new.params["encoder"])
    kernel[1, 1] = 0
    assert not kernel.any()
    assert float(scalars["codes/batch_perplexity"]) > 4


def test_the_codebook_starts_spread_over_the_images():
    training, state, _ = compiled("kept in use")
    state = jax.jit(training.start_from)(state, pictures())
    pixels = jnp.asarray(pictures(), jnp.float32) * (2 / 255) - 1
    ids = training.model.apply({"params": state.params}, pixels, method=training.model.encode)
    assert len(np.unique(ids)) == RECIPE.model.codebook_size


def leaves(trained):
    return jax.tree.leaves(jax.tree.map(np.asarray, trained.params))


@pytest.mark.parametrize("name", [pytest.param("released", marks=pytest.mark.slow), "kept in use"])
def test_a_killed_run_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    recipe = RECIPES[name]
    whole = train_tokenizer(recipe, tmp_path / "whole")

    def next_step(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", next_step)
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer(recipe, tmp_path / "killed")
    resumed = train_tokenizer(recipe, tmp_path / "killed")
    for expected, found in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(found, expected)
    told = map(json.loads, (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in told if "loss/total" in line] == [1, 2, 3, 4]
    assert resumed.scalars == whole.scalars
    told_of = {"psnr", "ssim", "codes_used", "code_perplexity", "colour_explained", "read_right", "colour_determined"}
    assert set(whole.scalars) == {f"eval/{name}" for name in told_of}


@pytest.mark.slow
def test_eight_devices_train_as_one(tmp_path):
    # Adam makes a whole step of a gradient that is nothing but rounding (a bias before a norm); a large eps does not.
    adam = replace(ADAM, eps=1e-2)
    recipe = replace(RECIPE, steps=2, optimizer=adam, discriminator_optimizer=adam)
    alone = train_tokenizer(recipe, tmp_path / "one")
    together = train_tokenizer(recipe, tmp_path / "eight", mesh=make_mesh())
    for expected, found in zip(leaves(alone), leaves(together), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    recipe = replace(RECIPE, losses=replace(RECIPE.losses, l2=float("inf")))
    with pytest.raises(Diverged, match="learning_rate"):
        train_tokenizer(recipe, tmp_path)


def test_recipes_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(JanusError, match=r"config\.data takes either"):
        Data()
    with pytest.raises(JanusError, match=r"config\.weights\.lpips"):
        WeightFiles(vgg16="vgg16.pth")
    with pytest.raises(JanusError, match=r"config\.codebook\.kmeans_images"):
        replace(RECIPE, architecture=replace(RECIPE.architecture, encoder_start="principal"))
    with pytest.raises(JanusError, match="batch_size 6"):
        train_tokenizer(replace(RECIPE, batch_size=6), tmp_path, mesh=make_mesh())
    with pytest.raises(JanusError, match=r"config\.losses\.l2"):
        replace(RECIPE, losses=replace(RECIPE.losses, l2=-1.0))
