"""Runs the commands of docs/training.md that train a model from a folder of pictures."""

import json
import re

import pytest
from PIL import Image

from tests.tiny import picture
from tests.training.doc_commands import ROOT, run_blocks

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
    (folder / "photos").mkdir()
    for number, name in enumerate(NAMES):
        picture(number, (64, 64)).save(folder / "photos" / f"{name}.png")
    for name in set(re.findall(r"--config (\w+)", SECTION)):
        (folder / f"{name}.py").write_text(RECIPE.format(name=name, steps=STEPS))
    blocks = [(kind, re.sub(r"--config (\w+)", r"--config ./\1.py", lines)) for kind, lines in BLOCKS]
    return folder, run_blocks(folder, COMMANDS, blocks)


@pytest.mark.nightly
def test_all_stages_are_trained(workspace):
    folder, _ = workspace
    for run in ("vq", "siglip", *(f"small/stage_{number}" for number in (1, 2, 3))):
        lines = (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == STEPS


@pytest.mark.nightly
def test_the_model_answers_and_generates(workspace):
    folder, printed = workspace
    assert printed[-1].strip()
    assert [Image.open(folder / "generated" / f"0000{number}_0.png").size for number in (0, 1)] == [(64, 64)] * 2
