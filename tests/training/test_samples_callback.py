"""Samples during training."""

import io
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.models.janus import Janus
from janus_jax.pretrained import Pretrained
from janus_jax.sharding import make_mesh, param_shardings
from janus_jax.training.callbacks.base import TrainingRun
from janus_jax.training.callbacks.samples import GenerateSamples
from janus_jax.training.console import Console
from janus_jax.training.metric_writer import MetricWriter
from janus_jax.training.recipe import Intervals, Samples
from janus_jax.training.trackers.tensorboard import contact_sheet
from tests import tiny
from tests.training import runs
from tests.training.test_metric_writer import summaries
from tests.training.test_trainer import assert_equal, params

QUESTION_WITHOUT_IMAGE = ("", "Say a word.")
PROMPTS = ("A small red boat.", "Two birds.", "三只鸟。")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    tiny.picture(3).save(path)
    return path


def recipe_with_samples(photo, **fields):
    """The recipe, with samples at every second step."""
    questions = ((str(photo), "What is in the picture?"), QUESTION_WITHOUT_IMAGE)
    samples = replace(Samples(questions, PROMPTS, max_new_tokens=6), **fields)
    intervals = Intervals(report=1, evaluate=0, sample=2, save=0)
    return replace(runs.recipe(), samples=samples, intervals=intervals)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, photo):
    """Stage folder and last state of a finished run."""
    workdir = tmp_path_factory.mktemp("sampled")
    return workdir / "stage_1", runs.run(recipe_with_samples(photo), workdir)


@pytest.mark.slow
def test_sampling_does_not_change_training(sampled):
    undisturbed, state = runs.finished()
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (sampled[0], undisturbed / "stage_1")]
    curves = [
        [(line["step"], line["loss"], line["grad_norm"]) for line in map(json.loads, each) if "loss" in line]
        for each in lines
    ]
    assert curves[0] == curves[1]
    assert_equal(sampled[1], state)


@pytest.mark.slow
def test_samples_match_the_params_of_the_step(sampled, photo):
    folder, state = sampled
    pretrained = Pretrained(tiny.CONFIG, params(state), tiny.processor(), Janus(tiny.CONFIG))
    asked = (("<image_placeholder>\nWhat is in the picture?", [str(photo)]), ("Say a word.", []))
    answers = [
        pretrained.chat([{"role": "user", "content": content}], images, max_new_tokens=6) for content, images in asked
    ]
    expected = f"photo.png: What is in the picture?\n{answers[0]}\n\nSay a word.\n{answers[1]}\n"
    assert (folder / "samples" / "step_4" / "answers.txt").read_text() == expected
    for number, (picture,) in enumerate(pretrained.generate(PROMPTS), 1):
        with Image.open(folder / "samples" / "step_4" / f"{number}.png") as found:
            np.testing.assert_array_equal(found, picture)
            assert found.text == {"prompt": PROMPTS[number - 1]}


def test_each_due_step_has_samples(sampled):
    names = ["1.png", "2.png", "3.png", "answers.txt"]
    found = {path.name: sorted(file.name for file in path.iterdir()) for path in (sampled[0] / "samples").iterdir()}
    assert found == {"step_2": names, "step_4": names}


def test_tensorboard_shows_the_samples(sampled):
    found = [(step, value) for step, value in summaries(sampled[0]) if re.match("samples/(answers|images)", value.tag)]
    assert [step for step, _ in found] == [2, 2, 2, 4, 4, 4]
    answers, prompts, images = (value for _, value in found[3:])
    (text,) = answers.tensor.string_val
    assert text.decode().startswith("**photo.png: What is in the picture?**\n\n")
    assert prompts.tensor.string_val == ["1. A small red boat.\n2. Two birds.\n3. 三只鸟。".encode()]
    assert (images.tag, images.image.width, images.image.height) == ("samples/images", 68, 68)


def test_contact_sheet_is_in_reading_order():
    pictures = [np.full((2, 3, 3), number, np.uint8) for number in (1, 2, 3)]
    sheet = contact_sheet(pictures)
    assert sheet.shape == (8, 10, 3)
    corners = sheet[:2, :3], sheet[:2, 7:], sheet[6:, :3], sheet[6:, 7:]
    assert [set(corner.ravel().tolist()) for corner in corners] == [{1}, {2}, {3}, {0}]


def last_step(params, stream, mesh=None):
    """A run after its only step, which prints to the stream."""
    writer = MetricWriter(None, Console(1, stream=stream))
    return TrainingRun(SimpleNamespace(params=params, frozen={}), 1, 1, writer, mesh)


@pytest.mark.nightly
def test_mesh_generates_the_same_samples(photo, tmp_path):
    mesh = make_mesh(1, 2, 2, jax.devices()[:4])
    spread = jax.device_put(tiny.stacked_params(), param_shardings(abstract_params(make_model(tiny.CONFIG)), mesh))
    made = []
    for name, tree, where in (("one", tiny.stacked_params(), None), ("mesh", spread, mesh)):
        generate = GenerateSamples(recipe_with_samples(photo), tiny.processor(), tmp_path / name)
        generate.after_step(last_step(tree, io.StringIO(), mesh=where))
        folder = tmp_path / name / "samples" / "step_1"
        made.append(
            [(folder / "answers.txt").read_text(), *(np.asarray(Image.open(folder / f"{n}.png")) for n in (1, 2, 3))]
        )
    assert made[0][0] == made[1][0]
    for one, other in zip(*(pictures[1:] for pictures in made), strict=True):
        np.testing.assert_allclose(one.astype(int), other.astype(int), atol=1)


def test_non_finite_logits_do_not_end_the_run(photo, tmp_path):
    spoiled = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), tiny.stacked_params())
    stream = io.StringIO()
    GenerateSamples(recipe_with_samples(photo), tiny.processor(), tmp_path).after_step(last_step(spoiled, stream))
    assert "step 1: no samples: The logits are NaN" in stream.getvalue()


def test_answers_may_have_more_tokens_than_the_context_leaves(photo, tmp_path):
    GenerateSamples(recipe_with_samples(photo, max_new_tokens=100_000), tiny.processor(), tmp_path)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"questions": (("photo.png", " "),)}, "config.samples.questions has ('photo.png', ' '); each must be a pair"),
        ({"questions": ("What is it?",)}, "config.samples.questions has 'What is it?'; each must be a pair"),
        ({"questions": (("", "What? " * 1000),)}, "config.samples.questions, number 1, cannot be used: The prompt has"),
        ({"prompts": ("boat " * 1000,)}, "config.samples.prompts, number 1, has"),
        ({"temperature": -1.0}, "config.samples.temperature is -1.0"),
    ],
)
def test_invalid_samples_are_rejected(photo, tmp_path, fields, sentence):
    with pytest.raises(JanusError, match=re.escape(sentence)):
        runs.run(recipe_with_samples(photo, **fields), tmp_path)
