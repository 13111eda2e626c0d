import dataclasses
import importlib
import json
import re
import sys
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags

from janus_jax.config import preset
from janus_jax.data.pipeline.examples import Supervision
from janus_jax.errors import JanusError
from janus_jax.training.config_dicts import from_config, to_config, to_json
from janus_jax.training.optimizers import make_schedule
from janus_jax.training.recipe import Recipe
from janus_jax.training.stage_config import Initialisation, Precision

# Tables of the papers: learning rate, schedule, decay, warmup, steps, last step, batch size, and the ratio of
# understanding, text and generation.
JANUS = [
    (1e-3, "cosine", 0, 300, 10_000, 10_000, 256, (1, 0, 1)),
    (1e-4, "constant", 0, 5_000, 180_000, 180_000, 512, (2, 3, 5)),
    (2e-5, "constant", 0.1, 0, 24_000, 24_000, 256, (7, 3, 10)),
]
JANUS_PRO = [
    (1e-3, "constant", 0, 600, 20_000, 20_000, 256, (1, 0, 3)),
    (1e-4, "constant", 0, 5_000, 360_000, 270_000, 512, (2, 3, 5)),
    (4e-5, "constant", 0, 0, 80_000, 80_000, 128, (5, 1, 4)),
]
JANUS_PRO_7B = [*JANUS_PRO[:2], (4e-5, "constant", 0, 0, 40_000, 40_000, 128, (5, 1, 4))]
JANUSFLOW = [
    (1e-4, "constant", 0, 2_000, 10_000, 10_000, 512, (50, 0, 50)),
    (1e-4, "constant", 0, 2_000, 390_000, 390_000, 512, (14, 6, 80)),
    (2e-5, "constant", 0, 1_000, 26_000, 26_000, 256, (21, 9, 70)),
]
Table = list[tuple[Any, ...]]
TABLES: dict[str, Table] = {
    "janus_1_3b": JANUS,
    "janus_pro_1b": JANUS_PRO,
    "janus_pro_7b": JANUS_PRO_7B,
    "janusflow_1_3b": JANUSFLOW,
}
ROWS = [(name, index, row) for name, table in TABLES.items() for index, row in enumerate(table)]
EARLIER = {("janusflow_1_3b", 1): {(30, 20, 50)}}
"""Ratios at the start of a stage, if they differ."""
MODELS = {"janus_1_3b": "janus_1.3b", "janusflow_1_3b": "janusflow_1.3b"}
JANUS_PRO_1B = preset("janus_pro_1b")


def recipe(name="janus_pro_1b"):
    return from_config(Recipe, importlib.import_module(f"configs.{name}").get_config())


def ratio(phase):
    weights = dict(phase.weights)
    generation = weights.get("generation", 0) + weights.get("imagenet", 0)
    return weights.get("understanding", 0), weights.get("text", 0), generation


@pytest.mark.parametrize(("name", "index", "row"), ROWS)
def test_stages_match_the_papers(name, index, row):
    rate, schedule, decay, warmup, steps, last_step, batch_size, mixture = row
    stage = recipe(name).stages[index]
    o = stage.optimizer
    assert (o.learning_rate, o.schedule, o.weight_decay, o.warmup_steps) == (rate, schedule, decay, warmup)
    assert (o.b1, o.b2, o.clip_norm, o.muon_learning_rate) == (0.9, 0.95, 1.0, None)
    assert (stage.steps, stage.last_step, stage.batch_size) == (steps, last_step, batch_size)
    assert {ratio(phase) for phase in stage.phases} == {mixture} | EARLIER.get((name, index), set())
    assert (stage.drop_condition, stage.first_sentence, stage.budget.tokens) == (0.1, 0.25, 4096)
    assert stage.supervision is (Supervision.ANSWERS if index == 2 else Supervision.TEXT)
    assert stage.initialisation.source == ("stage" if index else "parts")
    assert stage.ema_decay == (0.99 if name == "janusflow_1_3b" else 0)
    last_rate = make_schedule(o, stage.steps)(stage.last_step - 1)
    assert last_rate == pytest.approx(rate if schedule == "constant" else 0, abs=1e-9)


FIRST_TRAINED = {
    "janusflow_1_3b": {
        "und_adaptor",
        "beg_of_und",
        "gen_encoder",
        "gen_adaptor",
        "gen_decoder_adaptor",
        "gen_decoder",
        "aligner",
    }
}


@pytest.mark.parametrize("name", TABLES)
def test_trained_parts_match_the_papers(name):
    trained = [{pattern.removesuffix("/*") for pattern in stage.trained} for stage in recipe(name).stages]
    assert trained[0] == FIRST_TRAINED.get(name, {"und_adaptor", "gen_embed", "gen_adaptor", "gen_head"})
    assert trained[1] == trained[0] | {"llm"}
    assert trained[2] == trained[1] | {"und_encoder"}


def test_janus_uses_only_imagenet_for_120_000_steps_of_stage_two():
    first, second = recipe("janus_1_3b").stages[1].phases
    assert (first.until_step, first.weights["generation"], second.weights["imagenet"]) == (120_000, 0, 0)


def test_janusflow_uses_more_text_for_10_000_steps_of_stage_two():
    first, second = recipe("janusflow_1_3b").stages[1].phases
    assert (first.until_step, ratio(first), ratio(second)) == (10_000, (30, 20, 50), (14, 6, 80))


@pytest.mark.parametrize("name", TABLES)
def test_recipe_round_trips_through_json(name):
    once = recipe(name)
    assert from_config(Recipe, json.loads(json.dumps(to_json(once)))) == once


def test_flags_reach_nested_fields(monkeypatch):
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    arguments = {
        "config.stage": "2",
        "config.stages.stage_2.optimizer.learning_rate": "3",
        "config.stages.stage_2.optimizer.muon_learning_rate": "0.02",
        "config.stages.stage_2.phases.phase_1.weights.text": "4",
        "config.stages.stage_2.supervision": "answers",
        "config.stages.stage_2.trained": "('llm/*',)",
        "config.sources.text.directory": "/data",
    }
    argv = ["train", "--config=configs/janus_pro_1b.py", *(f"--{name}={value}" for name, value in arguments.items())]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.chdir(importlib.import_module("configs.janus_pro_1b").__file__.rpartition("/configs/")[0])
    values(argv)
    changed = from_config(Recipe, config.value)
    stage = changed.current
    assert (stage.optimizer.learning_rate, stage.optimizer.muon_learning_rate) == (3.0, 0.02)
    assert ratio(stage.phases[0]) == (2, 4, 5)
    assert (stage.supervision, stage.trained) == (Supervision.ANSWERS, ("llm/*",))
    assert changed.sources["text"].directory == "/data"


def changed(**fields):
    values = to_json(recipe())
    for path, value in fields.items():
        *parents, last = path.split("__")
        node = values
        for key in parents:
            node = node[key]
        node[last] = value
    return values


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"colour": 1}, "config.colour does not exist. Fields of config: stages, sources"),
        ({"stages__stage_1__batchsize": 1}, "config.stages.stage_1.batchsize does not exist. Did you mean batch_size?"),
        ({"stage": 4}, "config.stage is 4; it must be from 1 to 3"),
        ({"stage": "two"}, "config.stage is 'two'; it must be a whole number"),
        ({"stages__stage_1__steps": True}, "config.stages.stage_1.steps is True"),
        ({"stages__stage_1__steps": 0}, "stage.steps is 0"),
        ({"stages__stage_1__stop_at": 30_000}, "stop_at is 30000; it must be from 1 to steps, 20000"),
        ({"stages__stage_1__supervision": "all"}, "supervision is 'all'; it must be one of text, answers"),
        ({"stages__stage_1__precision__compute": "int8"}, "compute is 'int8'; it must be one of auto, float32"),
        ({"stages__stage_1__optimizer__learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"stages__stage_1__optimizer": 5}, "optimizer is 5; it must be an object"),
        ({"stages__stage_1__phases": [1]}, "phases is [1]; it must be an object with numbered keys"),
        ({"stages__stage_1__trained": "llm"}, "trained is 'llm'; it must be a list"),
        ({"sources": 3}, "config.sources is 3; it must be an object"),
        ({"stages__stage_1__trained": []}, "trained is empty and its lora.rank is 0"),
        ({"stages__stage_1__lora__rank": -1}, "lora.rank is -1; it must be 0 or more"),
    ],
)
def test_invalid_values_are_reported_by_name(fields, sentence):
    with pytest.raises(JanusError, match=re.escape(sentence)):
        from_config(Recipe, changed(**fields))


def test_missing_field_is_reported():
    values = to_json(recipe())
    del values["stages"]["stage_2"]["batch_size"]
    with pytest.raises(JanusError, match=r"config\.stages\.stage_2\.batch_size is missing"):
        from_config(Recipe, values)


def with_folders(stage, *names):
    sources = {name: f"sources__{name}__directory" for name in names}
    return from_config(Recipe, changed(stage=stage, **{field: f"/data/{name}" for name, field in sources.items()}))


def test_stage_reads_the_sources_with_a_weight():
    stream = with_folders(3, "understanding", "text", "generation").stream
    assert [component.name for component in stream.components] == ["generation", "text", "understanding"]
    assert stream.supervision is Supervision.ANSWERS
    assert stream.batch_size == 128


def test_source_without_folder_is_reported():
    with pytest.raises(JanusError, match=r"config\.sources\.text\.directory is empty"):
        _ = with_folders(2, "understanding", "generation").stream


def test_weight_of_unknown_source_is_reported():
    fields = {"stages__stage_1__phases__phase_1__weights": {"pictures": 1.0}}
    with pytest.raises(JanusError, match="'pictures'; the sources are"):
        _ = from_config(Recipe, changed(**fields)).stream


def test_initial_checkpoints_are_required():
    with pytest.raises(JanusError, match=r"config\.stages\.stage_1\.initialisation\.llm is empty"):
        Initialisation("parts").check("config.stages.stage_1.initialisation", JANUS_PRO_1B)
    with pytest.raises(JanusError, match=r"needs an image tokenizer; set here\.gen_encoder"):
        Initialisation("model", model="/model", image_tokens_from_codebook=True).check("here", JANUS_PRO_1B)
    with pytest.raises(JanusError, match=r"here\.vae is empty; set it to the folder"):
        Initialisation("parts", llm="/llm", und_encoder="/siglip").check("here", preset("janusflow_1.3b"))
    Initialisation("stage").check("config.stages.stage_2.initialisation", JANUS_PRO_1B)
    Initialisation("model", model="/model").check("config.stages.stage_1.initialisation", JANUS_PRO_1B)


def test_architecture_replaces_the_preset():
    from tests import tiny

    own = dataclasses.replace(recipe(), architecture=tiny.CONFIG)
    assert from_config(Recipe, json.loads(json.dumps(to_json(own)))).model_config == tiny.CONFIG
    assert from_config(Recipe, to_config(own)).model_config == tiny.CONFIG


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")])
def test_auto_dtypes_depend_on_the_platform(platform, dtype):
    stage = recipe().replace_current(precision=Precision(tokenizer="float16")).on_platform(platform)
    assert stage.current.precision == Precision(dtype, dtype, "float16")
    assert (stage.execution.dtype, stage.microbatching.tokenizer_dtype) == (dtype, "float16")


def test_dtypes_without_a_platform_are_refused():
    with pytest.raises(ValueError, match="on_platform"):
        _ = recipe().execution
