"""Every field of every recipe is documented, and printed with its value."""

import dataclasses
import typing

import pytest

from janus_jax import load_recipe
from janus_jax.training.config_dicts import field_types, without_none
from janus_jax.training.config_docs import describe_config, field_docs
from janus_jax.training.image_tokenizer.recipe import VAERecipe, VQRecipe
from janus_jax.training.recipe import Recipe
from janus_jax.training.siglip import SiglipRecipe


def dataclasses_of(kind, found):
    kind = without_none(kind)
    for argument in typing.get_args(kind):
        dataclasses_of(argument, found)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in found:
        found.append(kind)
        for inner in field_types(kind).values():
            dataclasses_of(inner, found)
    return found


CLASSES = [cls for recipe in (Recipe, VQRecipe, VAERecipe, SiglipRecipe) for cls in dataclasses_of(recipe, [])]


@pytest.mark.parametrize("cls", dict.fromkeys(CLASSES), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_field_is_documented(cls):
    docs = field_docs(cls)
    assert [name for name in field_types(cls) if not docs.get(name)] == []
    assert not [doc for doc in docs.values() if "See `" in doc]


def test_fields_are_printed_with_value_documentation_and_choices():
    config = load_recipe("janus_pro_1b")
    config.stages.stage_2.optimizer.schedule = "cosine"
    config.stages.stage_2.stop_at = None
    lines = describe_config(Recipe, config).splitlines()

    def after(line):
        return lines[lines.index(line) + 1].strip()

    assert after("config.stage = 1") == "Stage to run, counted from 1."
    assert after("config.stages.stage_2.stop_at = None") == "Step at which training ends; None for `steps`."
    assert after("config.stages.stage_2.optimizer.schedule = 'cosine'").startswith('"constant", or "cosine" from')
    assert after("config.stages.stage_3.supervision = 'answers'").endswith("One of: text, answers.")
    assert after("config.resources.microbatches = 1") == "Number of microbatches."
    assert after("config.sources.text.directory = ''").startswith("Folder that `janus-prepare` wrote;")
    assert "config.stages.stage_1.phases.phase_1.weights.imagenet = 3.0" in lines


def test_fields_of_an_architecture_are_those_of_its_class():
    config = load_recipe("vq_16")
    lines = describe_config(VQRecipe, config).splitlines()
    assert lines[lines.index("config.model.codebook_size = 16384") + 1].strip().startswith("Number of codes")
