"""Precomputed image tokens and latents of another image tokenizer or VAE are refused."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from checkpoints_convert import save_checkpoint
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.prepare.encode_images import open_image_encoder
from janus_jax.data.prepare.prepare import PrepareOptions, prepare
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from janus_jax.training.image_token_check import check_image_tokens, find_image_tokenizer, save_image_tokenizer
from janus_jax.training.init_from import OpenedStage, open_initialisation
from janus_jax.training.recipe import PreparedDataset
from janus_jax.training.stage_config import RANDOM, Editing, Initialisation
from tests import tiny
from tests.data.samples import image, json_lines, spec
from tests.training import runs

PARTS = {"janus": ("gen_encoder", tiny.CONFIG.gen_encoder), "flow": ("vae", tiny.FLOW.vae)}
CONFIGS = {"janus": tiny.CONFIG, "flow": tiny.FLOW}


def fingerprint(folder):
    return open_image_encoder(folder).fingerprint()


def save_part(folder, kind, change=lambda array: array):
    """Saves the image tokenizer or VAE of a tiny model with changed parameters."""
    part, config = PARTS[kind]
    tree = jax.tree.map(change, tiny.stacked_params(CONFIGS[kind])[part])
    save_checkpoint(folder, {part: tree}, config)
    return folder


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_conversion_keeps_the_fingerprint(tmp_path, kind, dtype):
    converted = save_part(tmp_path / "part", kind, lambda array: array.astype(jax.numpy.dtype(dtype)))
    kept = fingerprint(runs.models() / ("model" if kind == "janus" else kind))
    assert fingerprint(converted)["parameters"] == kept["parameters"]


@pytest.mark.parametrize("kind", PARTS)
def test_training_changes_the_fingerprint(tmp_path, kind):
    def step(array):
        return array - 0.01 * np.sign(np.sin(np.arange(array.size))).reshape(array.shape).astype(array.dtype)

    assert fingerprint(save_part(tmp_path / "part", kind, step)) != fingerprint(save_part(tmp_path / "same", kind))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset prepared with the image tokenizer of the tiny model."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "a.jpg").write_bytes(image(0))
    file = json_lines(folder / "c.jsonl", [{"image": "a.jpg", "caption": "A boat."}])
    given = replace(spec(folder / "out", "captions", file), tokenizer="model")
    prepare(given, PrepareOptions(1, 0.0, batch_size=1), open_image_encoder(runs.models() / "model"))
    return folder / "out"


def recipe(dataset, start=None):
    recipe = runs.recipe()
    sources = recipe.sources | {"generation": replace(recipe.sources["generation"], directory=str(dataset))}
    recipe = replace(recipe, sources=sources, precomputed_image_tokens=True)
    return recipe if start is None else recipe.replace_current(initialisation=start)


def parts(gen_encoder):
    others = {name: str(runs.models() / name) for name in ("llm", "und_encoder")}
    return Initialisation("parts", gen_encoder=str(gen_encoder), **others)


def check(recipe, workdir):
    start = open_initialisation(recipe, workdir)
    check_image_tokens(start.recipe, find_image_tokenizer(start, workdir))


@pytest.mark.slow
def test_the_dataset_of_the_model_is_accepted(dataset, tmp_path):
    check(recipe(dataset), tmp_path)
    check(recipe(dataset, parts(runs.models() / "gen_encoder")), tmp_path)


def test_the_dataset_of_another_tokenizer_is_refused(dataset, tmp_path):
    other = save_part(tmp_path / "other", "janus", lambda array: -array)
    words = r"generation\.directory is .*out, which has image tokens of another image tokenizer \(fingerprint"
    with pytest.raises(JanusError, match=words):
        check(recipe(dataset, parts(other)), tmp_path)
    check(replace(recipe(dataset, parts(other)), precomputed_image_tokens=False), tmp_path)


@pytest.mark.parametrize("start", [Initialisation("random"), parts(RANDOM)])
def test_a_random_tokenizer_is_refused(dataset, tmp_path, start):
    with pytest.raises(JanusError, match="the image tokenizer of the model is initialized randomly"):
        check(recipe(dataset, start), tmp_path)


def test_images_of_another_size_are_refused(dataset):
    found = fingerprint(runs.models() / "model")
    with pytest.raises(JanusError, match=rf"of {found['image_size']} pixels, and the model has 999"):
        check_image_tokens(recipe(dataset), found | {"image_size": 999})


def test_a_dataset_without_a_fingerprint_is_accepted(tmp_path):
    check(replace(runs.recipe(), precomputed_image_tokens=True), tmp_path)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_later_stages_and_resumed_runs_read_the_fingerprint_of_the_run(dataset, tmp_path, is_resumed):
    start = OpenedStage(recipe(dataset, Initialisation("stage")), {}, is_resumed)
    assert find_image_tokenizer(start, tmp_path) is None
    save_image_tokenizer({"image_size": 1, "scale": 1.0, "parameters": "other"}, tmp_path)
    with pytest.raises(JanusError, match="another image tokenizer"):
        check_image_tokens(start.recipe, find_image_tokenizer(start, tmp_path))


def test_a_dataset_is_not_continued_with_another_tokenizer(dataset, tmp_path):
    job = json.loads((dataset / "preparation.json").read_text())["job"]
    assert job["image_tokenizer"] == fingerprint(runs.models() / "model")
    given = replace(spec(dataset, "captions", dataset.parent / "c.jsonl"), tokenizer="model")
    other = save_part(tmp_path / "other", "janus", lambda array: -array)
    with pytest.raises(JanusError, match="was prepared with image_tokenizer = "):
        prepare(given, PrepareOptions(1, 0.0), open_image_encoder(other))


def test_a_run_writes_the_fingerprint_of_its_tokenizer():
    workdir, _ = runs.finished()
    saved = json.loads((workdir / "tokenizer" / "image_tokenizer.json").read_text())
    assert saved == fingerprint(runs.models() / "model")


def test_tokens_of_edits_of_another_editing_style_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(image(0))
    row = {"input_image": "a.jpg", "input_prompt": "Blue.", "output_image": "b.jpg"}
    given = replace(spec(tmp_path / "out", "edits", json_lines(tmp_path / "e.jsonl", [row])), tokenizer="model")
    opened = open_image_encoder(runs.models() / "model")
    prepare(given, PrepareOptions(1, 0.0, batch_size=1), opened)
    edits = PreparedDataset(str(tmp_path / "out"), task=Task.EDITING)
    base = replace(runs.recipe(), sources={"edits": edits}, precomputed_image_tokens=True)
    base = base.replace_current(phases=(Phase(None, {"edits": 1}),))
    check_image_tokens(base, opened.fingerprint())
    other = base.replace_current(editing=Editing("janus_pro_r1_edit"))
    with pytest.raises(JanusError, match=r"sources\.edits.*for the editing style janus_4o; .*--editing_style"):
        check_image_tokens(other, opened.fingerprint())
    with pytest.raises(JanusError, match="image tokens of another image tokenizer"):
        check_image_tokens(base, {"parameters": "other"})


def test_latents_of_edits_are_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(image(0))
    row = {"input_image": "a.jpg", "input_prompt": "Blue.", "output_image": "a.jpg"}
    given = replace(spec(tmp_path / "out", "edits", json_lines(tmp_path / "e.jsonl", [row])), tokenizer="flow")
    with pytest.raises(JanusError, match=r"--tokenizer flow computes latents, which --task editing does not use"):
        prepare(given, PrepareOptions(1, 0.0), open_image_encoder(runs.models() / "flow"))
    assert not (tmp_path / "out").exists()
