"""docs/training.md says what runs: fine-tuning on one's own data, its lines run as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs.finetune import get_config
from janus_jax.config import preset
from janus_jax.models.janus import Janus
from janus_jax.training.config_dicts import from_config
from janus_jax.training.objectives import TokenObjective
from janus_jax.training.optimizers import make_optimizer
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import abstract_train_state
from tests.pseudo import CORPUS, make_checkpoint
from tests.scenery import landscape

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
(SECTION,) = re.findall(r"^## Fine-tuning on one's own data\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r"^```bash\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)

# The recipe that the page names, on a model that trains in seconds: every other number is the recipe's own.
RECIPE = """
from dataclasses import replace

from configs.finetune import get_config as released
from janus_jax.config import preset
from janus_jax.data.pipeline.packing import Budget
from janus_jax.training.config_dicts import from_config, to_config
from janus_jax.training.recipe import Precision, Recipe, Resources


def get_config():
    recipe = from_config(Recipe, released())
    (stage,) = recipe.stages
    stage = replace(
        stage,
        steps=40,
        batch_size=2,
        budget=Budget(256, und_images=1, gen_images=1, text_targets=192),
        optimizer=replace(stage.optimizer, learning_rate=1e-2, warmup_steps=0),
        precision=Precision("float32", "float32", "float32"),
    )
    resources = Resources(remat="none", data_workers=0)
    return to_config(replace(recipe, stages=(stage,), architecture=preset("tiny"), resources=resources))
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder of photographs, a small model in the released layout, and what every line left and printed."""
    desk = tmp_path_factory.mktemp("desk")
    for folder in ("photos", "configs", "bin"):
        (desk / folder).mkdir()
    landscape(96, 64).save(desk / "photos" / "tom.jpg")
    landscape(64, 96).rotate(180).save(desk / "photos" / "rex.jpg")
    (desk / "configs" / "finetune.py").write_text(RECIPE)
    make_checkpoint(desk / "Janus-Pro-1B", preset("tiny"), CORPUS)
    (desk / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (desk / "bin" / "python").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{desk / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    printed = []
    for lines in BLOCKS:
        done = subprocess.run(
            ["bash", "-euc", lines], cwd=desk, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return desk, printed


def test_the_example_goes_all_the_way():
    commands = [line.split()[2] for line in "".join(BLOCKS).splitlines() if line.startswith("python -m ")]
    assert commands == ["launch.prepare", "launch.prepare", "launch.train", "launch.export", "launch.chat"]


@pytest.mark.slow
def test_it_learns_what_it_is_shown(desk):
    lines = (desk[0] / "runs" / "mine" / "stage_1" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_what_is_trained_is_exported_and_answers(desk):
    _, told, answer = desk[1][-1].partition("mine: stage 1 at step 40\n")
    assert told
    assert answer.strip()


@pytest.mark.parametrize("name", ["janus_pro_1b", "janus_pro_7b"])
def test_the_state_is_as_large_as_the_page_says(name):
    stage = from_config(Recipe, get_config()).current
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    state = abstract_train_state(TokenObjective(Janus(preset(name))), stage.trained, optimizer, None, lora=stage.lora)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert f"{size / 1e9:.1f} GB for {name.title().replace('_', '-')}" in SECTION
