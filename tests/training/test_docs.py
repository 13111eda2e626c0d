"""Runs the fine-tuning example of docs/training.md."""

import json
import re

import jax
import pytest

from configs.finetune import get_config
from janus_jax.config import preset
from janus_jax.models.janus import Janus
from janus_jax.training.config_dicts import from_config
from janus_jax.training.objectives import TokenObjective
from janus_jax.training.optimizers import make_optimizer
from janus_jax.training.recipe import Recipe
from janus_jax.training.state import abstract_train_state
from tests.pseudo import CORPUS, make_checkpoint
from tests.tiny import picture
from tests.training.doc_commands import ROOT, run_blocks

PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
(SECTION,) = re.findall(r"^## Fine-tuning on your own data\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = ("janus-prepare", "janus-train", "janus-export", "janus-chat")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)

# The recipe of the page for a small model; the other values are unchanged.
RECIPE = """
from dataclasses import replace

from configs.finetune import get_config as released
from janus_jax.data.pipeline.packing import Budget
from janus_jax.training.config_dicts import from_config, to_config
from janus_jax.training.recipe import Recipe, Resources


def get_config():
    recipe = from_config(Recipe, released())
    (stage,) = recipe.stages
    stage = replace(
        stage,
        steps=40,
        batch_size=2,
        budget=Budget(256, und_images=1, gen_images=1, text_targets=192),
        optimizer=replace(stage.optimizer, learning_rate=1e-2, warmup_steps=0),
    )
    resources = Resources(remat="none", data_workers=0)
    return to_config(replace(recipe, stages=(stage,), resources=resources))
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The folder in which the commands of the page ran, and their output."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "photos").mkdir()
    picture(0, (96, 64)).save(folder / "photos" / "tom.jpg")
    picture(1, (64, 96)).save(folder / "photos" / "rex.jpg")
    (folder / "finetune.py").write_text(RECIPE)
    make_checkpoint(folder / "Janus-Pro-1B", preset("tiny"), CORPUS)
    blocks = [("bash", lines.replace("--config finetune", "--config ./finetune.py")) for lines in BLOCKS]
    return folder, run_blocks(folder, COMMANDS, blocks)


@pytest.mark.nightly
def test_fine_tuning_lowers_the_loss(example):
    lines = (example[0] / "runs" / "mine" / "stage_1" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.nightly
def test_exported_model_answers(example):
    _, exported, answer = example[1][-1].partition("mine: stage 1 at step 40\n")
    assert exported
    assert answer.strip()


@pytest.mark.parametrize("name", ["janus_pro_1b", "janus_pro_7b"])
def test_state_size_matches_the_page(name):
    stage = from_config(Recipe, get_config()).current
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    state = abstract_train_state(TokenObjective(Janus(preset(name))), stage.trained, optimizer, None, lora=stage.lora)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert f"{size / 1e9:.1f} GB for {name.title().replace('_', '-')}" in " ".join(SECTION.split())
