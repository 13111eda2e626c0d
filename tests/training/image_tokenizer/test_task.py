"""Training steps of image tokenizers, and runs of the trainer with them."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert import open_checkpoint
from janus_jax.data.records import Record
from janus_jax.errors import Diverged, JanusError
from janus_jax.processing import Task
from janus_jax.sharding import make_mesh
from janus_jax.training.config_dicts import from_config
from janus_jax.training.image_tokenizer.recipe import ImageData, NetworkFiles, VQRecipe
from janus_jax.training.image_tokenizer.task import Extensions, tokenizer_params, tokenizer_task, train_tokenizer
from janus_jax.training.image_tokenizer.vae import VAETraining
from janus_jax.training.image_tokenizer.vq import VQTraining
from janus_jax.training.preemption import Preemption
from janus_jax.training.recipe_files import load_recipe
from janus_jax.training.trainer import DataStart, train
from tests.commands.conftest import run as run_command
from tests.data.prepared import write
from tests.training.image_tokenizer.recipes import ADAM, DATA, MOVING_AVERAGE, VAE, VQ, encoded, images

RECIPES = {"gradient": VQ, "moving average": MOVING_AVERAGE, "vae": VAE}


@functools.cache
def compiled(name):
    recipe = RECIPES[name]
    training = VAETraining(recipe) if name == "vae" else VQTraining(recipe)
    return training, jax.jit(training.init)(), jax.jit(training.step)


def differ(before, after):
    return any(bool(jnp.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))


def write_images(folder, count):
    records = [Record(f"{i}", Task.GENERATION, "x", images=(encoded(one),)) for i, one in enumerate(images(count))]
    write(folder, records)
    return folder


def run(recipe, workdir, **options):
    return train(tokenizer_task(recipe, extensions=DATA, **options), workdir)


@pytest.mark.nightly
def test_discriminator_and_its_loss_start_at_adversarial_start():
    _, state, step = compiled("gradient")
    for number in range(4):
        before = state.discriminator
        state, metrics = step(state, images(8), {})
        assert differ(before, state.discriminator) == (number >= 2)
        assert (float(metrics["loss/adversarial"]) != 0) == (number >= 2)


@pytest.mark.nightly
def test_average_follows_the_parameters():
    _, state, step = compiled("gradient")
    new, _ = step(state, images(8), {})
    before, after, ema = (
        tree["decoder"]["conv_out"]["kernel"]
        for tree in (state.tokenizer.params, new.tokenizer.params, new.tokenizer.ema)
    )
    # The decay is ramped: (1 + 0) / (10 + 0) at the first step.
    np.testing.assert_allclose(ema, 0.1 * before + 0.9 * after, rtol=1e-5)


@pytest.mark.nightly
def test_codebook_starts_with_all_codes_in_use_and_frozen_parts_keep_their_values():
    training, state, step = compiled("moving average")
    state = jax.jit(training.init_codebook)(state, images(16))
    ids = training.reconstruct(tokenizer_params(state), images(16))[1]
    assert len(np.unique(ids)) == MOVING_AVERAGE.model.codebook_size
    new, metrics = step(state, images(8), {})
    assert not differ(state.tokenizer.frozen["encoder"], new.tokenizer.frozen["encoder"])
    assert float(metrics["codes/batch_perplexity"]) > 4


@pytest.mark.nightly
def test_kl_moves_latents_to_a_standard_normal():
    recipe = replace(VAE, losses=replace(VAE.losses, l2=0.0, kl=1.0), optimizer=replace(ADAM, learning_rate=1e-2))
    training = VAETraining(recipe)
    state, step, kl = training.init(), jax.jit(training.step), []
    for _ in range(30):
        state, metrics = step(state, images(8), {})
        kl.append(float(metrics["loss/kl"]))
    assert kl[-1] < kl[0] / 3


@pytest.mark.nightly
@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_resumes_bitwise(name, tmp_path, monkeypatch):
    whole = run(RECIPES[name], tmp_path / "whole")

    def kill(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", kill)
        with pytest.raises(KeyboardInterrupt):
            run(RECIPES[name], tmp_path / "killed")
    resumed = run(RECIPES[name], tmp_path / "killed")
    for expected, found in zip(*map(jax.tree.leaves, (whole.state, resumed.state)), strict=True):
        np.testing.assert_array_equal(found, expected)
    lines = map(json.loads, (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "loss/total" in line] == [1, 2, 3, 4]
    scores = {"psnr", "ssim"} | ({"codes_used", "code_perplexity"} if name != "vae" else set())
    for score in scores:
        assert resumed.metrics[f"eval/{score}"] == whole.metrics[f"eval/{score}"]


@pytest.mark.nightly
@pytest.mark.parametrize("recipe", [VQ, VAE])
def test_training_writes_a_tokenizer_folder_once(recipe, tmp_path):
    few = replace(recipe, steps=1)
    folder = train_tokenizer(few, tmp_path, extensions=DATA)
    assert open_checkpoint(folder).config == recipe.model
    before = {keys: array for keys, _, array in open_checkpoint(folder).params("float32")}
    train_tokenizer(few, tmp_path, extensions=DATA)
    for keys, _, array in open_checkpoint(folder).params("float32"):
        np.testing.assert_array_equal(array, before[keys])


@pytest.mark.parametrize("count", [562, 12])
def test_a_small_set_of_images_trains_with_the_default_split(tmp_path, count):
    pictures = write_images(tmp_path / "pictures", count)
    # All defaults of the recipe, except those that take long.
    published = from_config(VQRecipe, load_recipe("vq_16"))
    data = replace(published.data, directories=(str(pictures),), workers=0)
    recipe = replace(published, data=data, model=VQ.model)
    task = tokenizer_task(recipe)
    with task.open_data(DataStart()) as batches:
        assert next(batches)[0].shape == (recipe.batch_size, 24, 24, 3)
        assert batches.get_state()["records"] == count - round(count / 20)
    (callback,) = task.make_callbacks(None)
    assert len(callback._images) == round(count / 20)


def test_images_in_memory_need_no_evaluation_images():
    task = tokenizer_task(VQ, extensions=Extensions(images=images(40)))
    with task.open_data(DataStart()) as batches:
        assert len(batches._arrays[0]) == 38


@pytest.mark.nightly
def test_eight_devices_train_like_one(tmp_path):
    # Adam turns a gradient that is only rounding error (a bias before a norm) into a full step; a large eps does not.
    adam = replace(ADAM, eps=1e-2)
    recipe = replace(VQ, steps=2, optimizer=adam, discriminator=replace(VQ.discriminator, optimizer=adam))
    one, eight = run(recipe, tmp_path / "one"), run(recipe, tmp_path / "eight", mesh=make_mesh())
    for expected, found in zip(
        *(jax.tree.leaves(tokenizer_params(result.state)) for result in (one, eight)), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.nightly
def test_a_loss_that_is_not_finite_stops_the_run_and_can_be_replayed(tmp_path):
    data = replace(VQ.data, directories=(str(write_images(tmp_path / "pictures", 32)),), workers=0)
    task = tokenizer_task(replace(VQ, data=data, losses=replace(VQ.losses, l2=float("inf"))))
    with pytest.raises(Diverged, match="learning rate"):
        train(task, tmp_path / "run")
    done = run_command("launch.train", f"--replay={tmp_path / 'run' / 'incidents' / 'step_1'}")
    assert "the batch is that of the incident" in done.stdout, done.stderr
    assert "loss/total: inf, recorded inf\n" in done.stdout


def test_invalid_recipes_are_refused(tmp_path):
    with pytest.raises(JanusError, match=r"config\.data\.directories is empty"):
        tokenizer_task(VQ)
    with pytest.raises(JanusError, match=r"config\.data has workers -1"):
        ImageData(workers=-1)
    with pytest.raises(JanusError, match=r"config\.networks\.lpips"):
        NetworkFiles(vgg16="vgg16.pth")
    with pytest.raises(JanusError, match="batch_size is 6"):
        run(replace(VQ, batch_size=6), tmp_path, mesh=make_mesh())
    with pytest.raises(JanusError, match=r"config\.losses\.l2"):
        replace(VQ.losses, l2=-1.0)
    with pytest.raises(JanusError, match="image_size is 25"):
        replace(VAE, image_size=25)
