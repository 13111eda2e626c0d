"""A small checkpoint in the released layout, and functions that run commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from janus_jax.config import preset
from tests.pseudo import CORPUS, make_checkpoint
from tests.tiny import picture

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "Janus-Pro-tiny"
    make_checkpoint(folder, preset("tiny"), CORPUS)
    return folder


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "photo.jpg"
    picture(0, (96, 64)).save(path)
    return path


@pytest.fixture
def spoiled(checkpoint, photo, tmp_path):
    """A folder of invalid inputs: damaged checkpoints, images and text files."""
    (tmp_path / "no_model").mkdir()
    without = shutil.copytree(checkpoint, tmp_path / "without_tokenizer")
    (without / "tokenizer.json").unlink()
    truncated = shutil.copytree(checkpoint, tmp_path / "truncated_weights") / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-1000])
    (tmp_path / "half.jpg").write_bytes(photo.read_bytes()[:700])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "utf_16.txt").write_text("the sea", encoding="utf-16")
    (tmp_path / "blank.txt").write_text("\n  \n")
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "run" / "stage_1" / "checkpoints" / "4").mkdir(parents=True)
    return tmp_path


def environment(**more):
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])} | more


def run(module, *arguments, cwd=None, **variables):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def refuses():
    """Returns a function that runs a command without devices and returns its user error."""

    def check(module, *arguments, cwd):
        done = run(module, *arguments, cwd=cwd, JAX_PLATFORMS="nowhere")
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        name = f"janus-{module.removeprefix('launch.')}" if module.startswith("launch.") else module
        assert done.stderr.startswith(f"{name}: ")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    return check
