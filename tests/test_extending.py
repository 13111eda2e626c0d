"""The examples of docs/extending.md work as they are."""

import importlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_jax.data.sources import SOURCES, SourceOptions, get_source
from janus_jax.evaluation import registry
from janus_jax.processing import Task
from janus_jax.rewards import REWARDS, make_reward
from janus_jax.training.config_dicts import from_config
from janus_jax.training.console import Console
from janus_jax.training.image_tokenizer import task
from janus_jax.training.metric_writer import MetricWriter
from janus_jax.training.recipe import Recipe
from janus_jax.training.recipe_files import load_recipe
from janus_jax.training.trackers import TRACKERS
from tests.training.image_tokenizer.recipes import VQ, images

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Saves the examples under the names in their first lines, in a folder on the module path."""
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "BENCHMARKS", dict(registry.BENCHMARKS))
    for registered, name in ((SOURCES, "poems"), (TRACKERS, "losses"), (REWARDS, "closeness")):
        monkeypatch.delitem(registered, name, raising=False)
    return tmp_path


def test_the_source_reads_records(folder):
    (folder / "pond.txt").write_text("An old silent pond.\nA frog jumps in.\n")
    (part,) = get_source("poems:poems").parts(SourceOptions((str(folder / "pond.txt"),), Task.TEXT))
    assert [entry.make().text for entry in part.entries()] == ["An old silent pond.", "A frog jumps in."]


def test_the_benchmark_scores_answers(folder):
    benchmark = registry.find_benchmark("capitals:capitals")
    assert benchmark.score(benchmark.read(folder, {}), {"france": "Paris."}, {}) == {"accuracy": 1}


def test_the_rewards_score_images(folder):
    images = np.zeros((2, 4, 6, 3), np.uint8)
    images[1, :, ::2] = 100
    Image.fromarray(images[1]).save(folder / "map.png")
    sharpness = make_reward("sharpness:sharpness", ["scale=2"])
    assert sharpness(["a", "b"], images, [{}, {}]).tolist() == [0, 200]
    closeness = make_reward("closeness:closeness", [f"image={folder / 'map.png'}"])
    assert closeness(["a", "b"], images, [{}, {}]).tolist() == [-50, 0]


def test_the_recipe_changes_a_field(folder):
    assert from_config(Recipe, load_recipe(str(folder / "my_recipe.py"))).stages[0].batch_size == 64


def test_the_tracker_shows_the_losses_of_a_run(folder):
    with MetricWriter(folder, Console(2, stream=io.StringIO()), trackers=("losses:losses",)) as writer:
        writer.scalars(1, {"loss": 2.5, "grad_norm": 1.0})
        writer.scalars(2, {"held_out/loss": 3.0})
    assert (folder / "losses.csv").read_text() == "1,2.5\n"


def test_the_tokenizer_example_passes_its_images(folder, monkeypatch):
    monkeypatch.setattr(task, "train_tokenizer", lambda recipe, workdir, *, extensions: extensions)
    extensions = importlib.import_module("tokenizer").train(VQ, images(100), folder)
    assert (len(extensions.images), len(extensions.eval_images)) == (100, 64)
