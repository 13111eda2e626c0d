"""`janus-train` with image tokenizer recipes."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints_convert import open_checkpoint
from janus_jax.data.records import Record
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from janus_jax.training.config_dicts import from_config
from janus_jax.training.image_tokenizer.recipe import NetworkFiles, VQRecipe
from janus_jax.training.image_tokenizer.task import read_networks
from janus_jax.training.recipe_files import load_recipe
from tests.data.prepared import write
from tests.training.image_tokenizer.network_files import lpips_files
from tests.training.image_tokenizer.recipes import encoded, images

ROOT = Path(__file__).parents[2]
SMALL = (
    "--config.steps=1",
    "--config.batch_size=8",
    "--config.intervals.eval_images=4",
    "--config.data.workers=0",
    "--config.model.image_size=24",
    "--config.model.codebook_size=16",
    "--config.model.base_channels=4",
    "--config.model.channel_multipliers=(1,2)",
    "--config.model.z_channels=8",
    "--config.model.norm_groups=2",
    "--config.model.num_res_blocks=1",
    "--config.losses.adversarial=0.0",
)


def train(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.train", "--config", "vq_16", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.nightly
def test_a_tokenizer_trains_from_a_prepared_dataset(tmp_path):
    records = [Record(f"r{i}", Task.GENERATION, "x", images=(encoded(image),)) for i, image in enumerate(images(16))]
    write(tmp_path / "data", [record.to_example() for record in records])
    done = train("--workdir", tmp_path / "run", f"--config.data.directories=('{tmp_path / 'data'}',)", *SMALL)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "tokenizer"
    assert open_checkpoint(folder).config.image_size == 24
    assert all(np.isfinite(array).all() for _, _, array in open_checkpoint(folder).params("float32"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "config.data.directories is empty"),
        (("--config.data.directories=('absent',)",), "absent"),
        (("--config.model.image_size=50",), "image_size 50"),
        (("--config.networks.inception=absent.pth",), "absent.pth does not exist"),
        (("--config.datta.workers=1",), "config.datta does not exist"),
    ],
)
def test_user_errors_end_with_one_sentence(tmp_path, flags, words):
    done = train("--workdir", tmp_path / "run", *flags)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_vq_16_is_the_published_recipe():
    recipe = from_config(VQRecipe, load_recipe("vq_16"))
    weights = recipe.losses
    assert (weights.l2, weights.perceptual, weights.codebook, weights.commitment) == (1.0, 1.0, 1.0, 0.25)
    assert (weights.adversarial, weights.adversarial_start) == (0.5, 20_000)
    assert recipe.codebook == replace(recipe.codebook, update="gradient", kmeans_images=0, reseed_below=0.0)
    assert recipe.trained == ("*",)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.b1, recipe.optimizer.b2) == (1e-4, 0.9, 0.95)


def test_networks_are_read_from_pytorch_files(tmp_path):
    files = [tmp_path / name for name in ("vgg16.safetensors", "vgg.safetensors")]
    for file, tensors in zip(files, lpips_files(), strict=True):
        save_file(tensors, file)
    networks = read_networks(NetworkFiles(*map(str, files)))
    assert networks.lpips["vgg"]["conv_0"]["kernel"].shape == (3, 3, 3, 64)
    assert networks.inception is None
    with pytest.raises(JanusError, match=r"vgg\.safetensors.*features\.0\.weight"):
        read_networks(NetworkFiles(str(files[1]), str(files[0])))
