"""`janus-export`: a workdir is exported as a model folder."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from huggingface_hub import ModelCard

import janus_jax
from checkpoints_convert import convert, open_checkpoint
from janus_jax.config import Execution
from janus_jax.models.backbone import apply
from janus_jax.models.janus import Janus
from janus_jax.processing import Task
from janus_jax.training import export as exporting
from janus_jax.training import model_card
from janus_jax.training.export import export, last_stage
from janus_jax.training.param_paths import merge
from janus_jax.training.stage_config import Editing, Initialisation
from tests.commands.conftest import ROOT, run
from tests.commands.test_train import ONE_DEVICE
from tests.hub_server import TOKEN, connect, serve, variables
from tests.training import runs

QUESTION = [{"role": "user", "content": "What is in the picture?"}]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "model"
    workdir, state = runs.finished()
    assert export(workdir, last_stage(workdir), out, "float32") == runs.STEPS
    return out, merge(state.params, state.frozen)


def logits(model, params, batch):
    @functools.partial(jax.jit, static_argnums=0)
    def compute(model, params, batch):
        hidden = apply(model.__call__, params, batch)
        return apply(model.text_logits, params, hidden), apply(model.image_logits, params, hidden)

    return compute(model, params, batch)


@pytest.mark.slow
def test_exported_folder_loads_as_the_trained_model(exported):
    folder, params = exported
    loaded = janus_jax.load(folder, dtype="float32")
    batch = loaded.processor.left_pad([loaded.processor.understanding_sequence(QUESTION)])
    expected = logits(Janus(runs.MODEL, Execution()), params, batch)
    for actual, wanted in zip(logits(loaded.model, loaded.params, batch), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_exported_folder_converts(exported, tmp_path):
    convert(exported[0], tmp_path / "released", "released")
    names = {path.name for path in (tmp_path / "released").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= names


@pytest.mark.nightly
def test_janusflow_export_has_the_moving_average_without_the_aligner(tmp_path):
    workdir, state = runs.finished("flow")
    export(workdir, 1, tmp_path / "model", "float32")
    found = {"/".join(path): array for path, _, array in open_checkpoint(tmp_path / "model").params("float32")}
    averages = flatten_dict(state.ema, sep="/")
    assert set(averages) - set(found) == {f"aligner/fc{n}/{leaf}" for n in (1, 2, 3) for leaf in ("weight", "bias")}
    for name in set(averages) & set(found):
        np.testing.assert_array_equal(found[name], averages[name])


def test_a_card_has_base_model_recipe_and_scores(tmp_path, monkeypatch):
    workdir = shutil.copytree(runs.finished()[0], tmp_path / "run")
    with (workdir / "stage_1" / "metrics.jsonl").open("a") as metrics:
        for step, value in ((2, 50.0), (runs.STEPS, 86.25), (runs.STEPS + 1, 99.0)):
            print(json.dumps({"step": step, "benchmarks/pope/accuracy": value}), file=metrics)
    read = model_card._recipe
    start = Initialisation("parts", llm="me/llm@v1", und_encoder="random", gen_encoder=str(workdir))
    monkeypatch.setattr(model_card, "_recipe", lambda *at: read(*at).replace_current(initialisation=start))
    text = model_card.model_card(workdir, 1, runs.STEPS, "me/mine", license_id="mit")
    data = ModelCard(text).data
    assert (data.license, data.base_model, data.pipeline_tag) == ("mit", ["me/llm"], "any-to-any")
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("pope", "accuracy", 86.25)
    assert "| pope accuracy | 86.25 |" in text
    assert "| data, by weight | generation 1, understanding 1 |" in text
    assert "| batch | 2 sequences of 256 tokens |" in text
    assert 'janus_jax.load("me/mine")' in text
    assert str(workdir) not in text


@pytest.mark.nightly
def test_commands_train_export_push_and_generate_with_janusflow(tmp_path, monkeypatch):
    config = f"--config={ROOT / 'tests' / 'training' / 'runs.py'}:flow"
    steps = ("--config.stages.stage_1.steps=2", "--config.samples.prompts=('A boat.',)", "--config.samples.steps=2")
    done = run("launch.train", config, f"--workdir={tmp_path / 'run'}", *runs.flags(), *steps, **ONE_DEVICE)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "stage_1" / "samples" / "step_2" / "1.png").exists()
    with serve() as hub:
        done = run(
            "launch.export",
            f"--workdir={tmp_path / 'run'}",
            f"--out={tmp_path / 'mine'}",
            "--dtype=float32",
            "--push_to_hub=me/boats",
            "--license=mit",
            JAX_PLATFORMS="cuda",
            HF_TOKEN=TOKEN,
            **variables(hub.url, tmp_path / "home"),
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"{tmp_path / 'mine'}: stage 1 at step 2", f"{hub.url}/me/boats"]
        assert hub.messages == ["Stage 1 at step 2"]
        assert b"license: mit" in hub.models["me/boats"]["README.md"]
        connect(monkeypatch, hub.url, tmp_path / "cache")
        ((picture,),) = janus_jax.load("me/boats", dtype="float32").generate("A boat.", steps=2)
        assert "README.md" not in hub.names()
    assert picture.size == (32, 32)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--workdir=absent", "--out=model"), "absent has no checkpoints of a stage"),
        (("--workdir=absent", "--stage=1", f"--out={ROOT}"), "exists"),
        (
            ("--workdir=a", "--stage=1", "--out=b", "--push_to_hub=mine"),
            "--push_to_hub is 'mine'; it must be OWNER",
        ),
    ],
)
def test_user_errors_are_reported(refuses, tmp_path, flags, words):
    assert words in refuses("launch.export", *flags, cwd=tmp_path)


def test_the_layout_of_generated_images_is_exported(tmp_path, monkeypatch):
    workdir, _ = runs.finished()
    read = exporting.from_config

    def with_conversations(kind, content):
        recipe = read(kind, content)
        sources = {name: dataclasses.replace(source, task=Task.INTERLEAVED) for name, source in recipe.sources.items()}
        recipe = dataclasses.replace(recipe, sources=sources)
        return recipe.replace_current(editing=Editing(interleaved_features=True))

    monkeypatch.setattr(exporting, "from_config", with_conversations)
    export(workdir, 1, tmp_path / "model", "float32")
    assert janus_jax.load(tmp_path / "model").processor.interleaved_features
