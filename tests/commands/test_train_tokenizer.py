"""From the command line to a tokenizer that the rest takes, and the mistakes that end it."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert import open_checkpoint
from janus_jax.commands.train_tokenizer import read_judges
from janus_jax.config import VQConfig
from janus_jax.errors import JanusError
from janus_jax.training.config_dicts import from_config
from janus_jax.training.image_tokenizer.recipe import TokenizerRecipe, WeightFiles
from tests.training.image_tokenizer.judges import lpips_files

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
FEW = ("--config.steps=1", "--config.batch_size=8", "--config.data.world=8", "--config.intervals.eval_images=4")
SMALL = (
    *FEW,
    "--config.model.image_size=24",
    "--config.model.codebook_size=16",
    "--config.codebook.kmeans_images=8",
    "--config.optimizer.warmup_steps=0",
    "--config.model.channel_multipliers=(1,2)",
)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.train_tokenizer", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def recipe(name):
    return from_config(TokenizerRecipe, runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]())


@pytest.mark.slow
def test_what_comes_out_is_a_part_that_training_starts_from(tmp_path):
    arguments = ("--config", CONFIGS / "shapes_tokenizer.py", "--workdir", tmp_path, *SMALL)
    first = command(*arguments)
    assert first.returncode == 0, first.stderr
    converted = open_checkpoint(tmp_path / "tokenizer")
    assert isinstance(converted.config, VQConfig)
    assert converted.config.image_size == 24
    params = {"/".join(keys): array for keys, _, array in open_checkpoint(tmp_path / "tokenizer").params()}
    assert params["gen_encoder/codebook/embedding"].shape == (16, converted.config.code_dim)
    assert all(np.isfinite(array).all() for array in params.values())
    # Nothing is left to train: the same command writes the same tokenizer.
    second = command(*arguments)
    assert second.returncode == 0, second.stderr
    again = {"/".join(keys): array for keys, _, array in open_checkpoint(tmp_path / "tokenizer").params()}
    for name, array in params.items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--config.data.world=0",), "config.data takes either"),
        (("--config.data.world=0", "--config.data.directories=('absent',)"), "absent"),
        (("--config.model.image_size=50",), "image_size 50"),
        (("--config.weights.inception=absent.pth",), "absent.pth does not exist"),
        (("--config.datta.world=1",), "--config.datta.world=1"),
        (("--config.steps=many",), "--config.steps=many"),
        (("--config=absent.py",), "absent.py cannot be read as a config"),
    ],
)
def test_mistakes_end_it_with_one_sentence(tmp_path, flags, words):
    done = command("--config", CONFIGS / "shapes_tokenizer.py", "--workdir", tmp_path / "run", *flags)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_released_recipe_is_the_papers():
    vq_16 = recipe("vq_16")
    assert vq_16.model == VQConfig(image_size=256)
    assert vq_16.steps == 40 * 1_281_167 // 128
    weights = vq_16.losses
    assert (weights.l2, weights.perceptual, weights.codebook, weights.commitment) == (1, 1, 1, 0.25)
    assert (weights.l1, weights.edge, weights.entropy) == (0, 0, 0)
    assert (weights.adversarial, weights.adversarial_start) == (0.5, 20_000)
    assert vq_16.codebook.update == "gradient"
    assert not vq_16.codebook.kmeans_images
    assert not vq_16.codebook.reseed_below
    assert vq_16.architecture.encoder_reach == "full"
    assert (vq_16.optimizer.learning_rate, vq_16.optimizer.b1, vq_16.optimizer.b2) == (1e-4, 0.9, 0.95)


def test_the_shapes_recipe_makes_few_ids():
    assert 36 <= recipe("shapes_tokenizer").model.num_tokens <= 64


def test_weights_of_judges_are_read_from_pytorch_files(tmp_path):
    from safetensors.numpy import save_file

    files = [tmp_path / name for name in ("vgg16.safetensors", "vgg.safetensors")]
    for file, tensors in zip(files, lpips_files(), strict=True):
        save_file(tensors, file)
    judges = read_judges(WeightFiles(*map(str, files)))
    assert judges.lpips["vgg"]["conv_0"]["kernel"].shape == (3, 3, 3, 64)
    assert judges.inception is None
    with pytest.raises(JanusError, match=r"vgg\.safetensors.*features\.0\.weight"):
        read_judges(WeightFiles(str(files[1]), str(files[0])))
