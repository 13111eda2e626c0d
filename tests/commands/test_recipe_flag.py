"""Error messages for unknown config fields on the command line."""

import re

import pytest

from janus_jax import load_recipe
from janus_jax.commands.recipe_flag import check_field
from janus_jax.errors import JanusError


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "config.stages.stage_1.optimizer.learning_rat",
            "config.stages.stage_1.optimizer.learning_rat does not exist. Did you mean learning_rate or "
            "muon_learning_rate? Fields of config.stages.stage_1.optimizer: b1, b2,",
        ),
        (
            "config.batch_size",
            "config.batch_size does not exist. Did you mean config.evaluation.batch_size, "
            "config.stages.stage_1.batch_size or config.stages.stage_2.batch_size? Fields of config: architecture,",
        ),
        ("config.lr", "config.lr does not exist. Did you mean config.stages.stage_1.optimizer.learning_rate, config"),
        ("config.stages.stage_4.steps", "config.stages.stage_4 does not exist. Did you mean stage_3,"),
        ("config.xyzzy", "config.xyzzy does not exist. Fields of config: architecture,"),
        ("config.stage.number", "config.stage has no fields, so --config.stage.number cannot be set"),
        ("config.architecture.llm.depth", "config.architecture is not set, so --config.architecture.llm.depth cannot"),
    ],
)
def test_a_missing_field_is_named_with_similar_fields_and_those_of_its_level(path, words):
    with pytest.raises(JanusError, match=re.escape(words)):
        check_field(load_recipe("janus_pro_7b"), path)


@pytest.mark.parametrize(
    "path", ["config.stage", "config.stages.stage_3.phases.phase_1.weights.text", "config.samples.questions[0]"]
)
def test_existing_fields_are_accepted(path):
    check_field(load_recipe("janus_pro_7b"), path)
