"""Model of a stage if the recipe names none, and dtypes of a resumed run."""

from dataclasses import replace

import jax
import pytest
from flax.traverse_util import flatten_dict

from checkpoints_convert import convert, save_checkpoint
from janus_jax import load_recipe
from janus_jax.aot.report import compile_report
from janus_jax.aot.topologies import find_topology
from janus_jax.errors import JanusError
from janus_jax.training.config_dicts import from_config
from janus_jax.training.init_from import find_tokenizer, open_initialisation
from janus_jax.training.losses.rectified_flow import ALIGNER
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import set_up_stage
from janus_jax.training.stage_config import Initialisation, Precision
from janus_jax.training.unused_fields import check_unused_fields
from tests import tiny
from tests.training import runs


def without_model(**fields):
    return replace(runs.recipe(**fields), architecture=None)


@pytest.mark.parametrize("kind", ["janus", "flow"])
def test_a_whole_folder_gives_the_architecture(kind, tmp_path):
    opened = open_initialisation(without_model(kind=kind), tmp_path)
    folder = opened.recipe.stages[0].initialisation.model
    assert opened.recipe.model_config == opened.checkpoints["model"].config == runs.CONFIGS[kind]
    assert str(opened.checkpoints["model"].path) == folder


def test_a_resized_vocabulary_of_the_folder_is_taken(tmp_path):
    config = replace(runs.MODEL, llm=replace(runs.MODEL.llm, vocab_size=runs.MODEL.llm.vocab_size + 8))
    save_checkpoint(tmp_path / "model", tiny.stacked_params(config), config)
    recipe = from_config(Recipe, load_recipe("finetune"))
    start = replace(recipe.current.initialisation, model=str(tmp_path / "model"))
    opened = open_initialisation(recipe.replace_current(initialisation=start), tmp_path / "run")
    assert opened.recipe.model_config == config


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


def test_a_relative_workdir_is_no_model_id_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JanusError, match=r"config\.tokenizer is empty, and no initial checkpoint has a tokenizer"):
        find_tokenizer(replace(runs.recipe(), tokenizer=""), "run")


@pytest.mark.parametrize(
    "start",
    [
        lambda recipe: open_initialisation(recipe, "run"),
        lambda recipe: compile_report(recipe, find_topology("cpu:1x1")),
    ],
    ids=["train", "compile"],
)
def test_training_does_not_start_from_weights_of_8_bits(tmp_path, start):
    convert(runs.recipe().current.initialisation.model, tmp_path / "int8", quantization="int8")
    recipe = without_model(initialisation=Initialisation("model", model=str(tmp_path / "int8")))
    with pytest.raises(JanusError, match=r"weights of 8 bits \(int8\), which are for sampling only"):
        start(recipe)


def test_a_resumed_run_keeps_its_model_and_dtypes():
    workdir, _ = runs.finished()
    recipe = without_model(precision=Precision(frozen="bfloat16"), initialisation=Initialisation("model", model="gone"))
    resumed = open_initialisation(recipe, workdir).recipe
    assert resumed.model_config == runs.MODEL
    assert resumed.current.precision == Precision("float32", "bfloat16", "float32")


@pytest.mark.parametrize("kind", ["janus", "flow"])
def test_the_finetune_recipe_trains_adapters_of_any_model(kind, tmp_path):
    recipe = from_config(Recipe, load_recipe("finetune"))
    start = replace(recipe.current.initialisation, model=runs.recipe(kind=kind).stages[0].initialisation.model)
    opened = open_initialisation(recipe.replace_current(initialisation=start), tmp_path)
    check_unused_fields(opened.recipe)
    state = set_up_stage(opened.recipe.on_platform("cpu"), None).abstract
    assert {path[-1] for path in flatten_dict(state.params)} == {"lora_a", "lora_b"}
    assert ALIGNER not in state.frozen
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.frozen)} == {"float32"}
