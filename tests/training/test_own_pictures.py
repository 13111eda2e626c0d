"""Runs the commands of docs/training.md that train a model from a folder of pictures."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import picture

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
(SECTION,) = re.findall(
    r"^## A model of your own pictures, from scratch\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL
)
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
COMMANDS = ("janus-prepare", "janus-train", "janus-export", "janus-chat", "janus-generate")
NAMES = ("red apple", "penguin", "boat", "lake", "hill", "moon", "sun", "tree", "cloud", "bird", "house", "road")
STEPS = 2

# A recipe of the page with few steps, for few pictures; the other values are unchanged.
RECIPE = """
from janus_jax.training.recipe_files import load_recipe


def get_config():
    config = load_recipe("{name}")
    for part in config.get("stages", {{"": config}}).values():
        part.steps = {steps}
        part.batch_size = 2
        part.optimizer.warmup_steps = 1
    return config
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder of a dozen pictures in which all commands have run, and the output of each block."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("photos", "bin"):
        (folder / name).mkdir()
    for number, name in enumerate(NAMES):
        picture(number, (64, 64)).save(folder / "photos" / f"{name}.png")
    for name in COMMANDS:
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launch.{name.removeprefix("janus-")} "$@"\n')
        script.chmod(0o755)
    for name in set(re.findall(r"--config (\w+)", SECTION)):
        (folder / f"{name}.py").write_text(RECIPE.format(name=name, steps=STEPS))
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    printed = []
    for kind, lines in BLOCKS:
        lines = re.sub(r"--config (\w+)", r"--config ./\1.py", lines)
        done = subprocess.run(
            ["bash", "-euc", lines] if kind == "bash" else [sys.executable, "-c", lines],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return folder, printed


@pytest.mark.slow
def test_all_stages_are_trained(workspace):
    folder, _ = workspace
    for run in ("vq", "siglip", *(f"small/stage_{number}" for number in (1, 2, 3))):
        lines = (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == STEPS


@pytest.mark.slow
def test_the_model_answers_and_generates(workspace):
    folder, printed = workspace
    assert printed[-1].strip()
    assert [Image.open(folder / "generated" / f"0000{number}_0.png").size for number in (0, 1)] == [(64, 64)] * 2
