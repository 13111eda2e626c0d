"""The model of a stage whose recipe names none, and the dtypes of a resumed run."""

from dataclasses import replace

import pytest

from janus_jax.training.init_from import open_initialisation
from janus_jax.training.recipe import Initialisation, Precision
from tests.training import runs


def without_model(**fields):
    return replace(runs.recipe(**fields), architecture=None)


@pytest.mark.parametrize("kind", ["janus", "flow"])
def test_a_whole_folder_gives_the_architecture(kind, tmp_path):
    opened = open_initialisation(without_model(kind=kind), tmp_path)
    folder = opened.recipe.stages[0].initialisation.model
    assert opened.recipe.model_config == opened.checkpoints["model"].config == runs.CONFIGS[kind]
    assert str(opened.checkpoints["model"].path) == folder


def test_the_previous_stage_gives_the_architecture(monkeypatch):
    workdir, _ = runs.finished()
    recipe = without_model(stage=2)
    absent = replace(recipe.stages[0], initialisation=Initialisation("model", model="absent"))
    opened = open_initialisation(replace(recipe, stages=(absent, recipe.stages[1])), workdir)
    assert opened.recipe.model_config == runs.MODEL
    assert opened.checkpoints == {}


def test_a_recipe_without_a_run_takes_the_architecture_of_its_first_stage():
    assert open_initialisation(without_model(stage=2), None).recipe.model_config == runs.MODEL


def test_a_preset_is_kept_without_opening_the_folder():
    recipe = replace(without_model(initialisation=Initialisation("model", model="absent")), model="janus_pro_1b")
    assert open_initialisation(recipe, None)[:2] == (recipe, {})


def test_a_resumed_run_keeps_its_model_and_dtypes():
    workdir, _ = runs.finished()
    recipe = without_model(precision=Precision(frozen="bfloat16"), initialisation=Initialisation("model", model="gone"))
    resumed = open_initialisation(recipe, workdir).recipe
    assert resumed.model_config == runs.MODEL
    assert resumed.current.precision == Precision("float32", "bfloat16", "float32")
