"""Training on edits."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from janus_jax.batch import NO_POSITION
from janus_jax.data.pipeline.examples import ExampleBuilder
from janus_jax.data.pipeline.packing import Budget, pack
from janus_jax.processing import EDITING_STYLES
from janus_jax.sharding import make_mesh
from janus_jax.training.config_dicts import from_config
from janus_jax.training.optimizers import make_schedule
from janus_jax.training.recipe import Recipe
from janus_jax.training.train_step import Microbatching, put_batch
from janus_jax.training.trained_params import ALL_BUT_TOKENIZER
from tests import tiny
from tests.data import prepared
from tests.training import stages
from tests.training.test_train_step import assert_same_steps, moments

PROCESSOR = tiny.processor()
MICROBATCHING = Microbatching(tokenizer_dtype="float32")
BUDGET = Budget(384, und_images=2, gen_images=3, text_targets=0, context_images=2)


def batch():
    """Eight sequences, each with an edit in one of the styles and a caption. The step computes the image tokens."""
    sequences = []
    for number in range(8):
        style = EDITING_STYLES[("janus_4o", "janus_pro_r1_edit")[number % 2]]
        build = ExampleBuilder(PROCESSOR, drop_condition=0.0, first_sentence=0.0, editing=style)
        sequences.append([build(prepared.edit(number, 1 + number // 4)), build(prepared.generation(number))])
    return pack(sequences, BUDGET, PROCESSOR)


def two_steps(mesh=None):
    state, reports = stages.state(mesh), []
    for _ in range(2):
        state, metrics = stages.step(mesh, MICROBATCHING)(state, put_batch(batch(), mesh))
        reports.append({name: float(value) for name, value in metrics.items()})
    return reports, jax.tree.map(np.asarray, moments(state))


@pytest.mark.nightly
def test_a_mesh_takes_the_same_steps_on_edits():
    expected = two_steps()
    targets = int((batch().gen_starts != NO_POSITION).sum())
    assert expected[0][0]["tokens/generation"] == targets * PROCESSOR.num_gen_tokens
    assert_same_steps(two_steps(make_mesh(2, 2, 2)), expected)


def test_recipe_matches_the_published_code():
    recipe = from_config(Recipe, importlib.import_module("configs.janus_4o").get_config())
    (stage,), optimizer = recipe.stages, recipe.stages[0].optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (5e-6, 0.1, 1.0)
    assert (optimizer.b1, optimizer.b2) == (0.9, 0.999)
    assert optimizer.warmup_steps / stage.steps == pytest.approx(0.05, abs=1e-3)
    assert make_schedule(optimizer, stage.steps)(stage.steps) == pytest.approx(0.15 * 5e-6)
    assert stage.trained == ALL_BUT_TOKENIZER
    assert (stage.drop_condition, stage.first_sentence) == (0.1, 0.0)
    style = stage.editing.format
    assert (style.drop_source, style.drop_instruction, style.features) == (0.5, 0.0, True)
    # A packed sequence has three examples on average; see the docstring of the recipe.
    assert 64 <= 3 * stage.batch_size <= 128
    assert 3 * stage.batch_size * stage.steps == pytest.approx(3 * (45_700 + 46_500), rel=1e-3)
    other = dataclasses.replace(stage.editing, style="janus_pro_r1_edit").format
    assert (other.drop_source, other.drop_instruction) == (0.0, 0.1)
