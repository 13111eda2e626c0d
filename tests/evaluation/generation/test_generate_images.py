"""Tests of image generation for benchmarks.

Every image is generated once, and does not depend on interruptions, batches and processes.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.evaluation.generation.generate_images import generate_images
from janus_jax.evaluation.generation.image_requests import generated_files, requests_for_prompt
from janus_jax.evaluation.runner import collect_answers
from janus_jax.sharding import make_mesh
from tests import tiny
from tests.evaluation.generation.fakes import FakeImageModel, expected_pixels, read_pixels
from tests.evaluation.test_runner import ThreadCluster

SETTINGS = {"benchmark": "walls", "seed": 3}
OPTIONS = {"guidance_scale": "5", "temperature": "1"}
PROMPTS = ["ink", "a boat " * 12, "red", "a lake " * 14, "sky"]


def make_requests(folder, prompts=PROMPTS, size=None):
    return [
        request
        for index, prompt in enumerate(prompts)
        for request in requests_for_prompt(
            prompt, index, [f"predictions/{index}/{n}.png" for n in (0, 1)], folder, size
        )
    ]


def run(out, model, batch_size=4, requests=None, options=OPTIONS, cluster=None, **settings):
    common = {"options": options, "seed": 3, "batch_size": batch_size}
    return collect_answers(
        requests or make_requests(out),
        lambda items: generate_images(model, items, out, **common, **settings),
        out,
        SETTINGS,
        cluster=cluster,
    )


def assert_expected_images(out, requests):
    for request in requests:
        expected = expected_pixels(request.prompt, (request.prompt_index, request.image_index), 3)
        np.testing.assert_array_equal(read_pixels(out / request.file), expected)


def test_every_answer_names_the_file_of_its_image(tmp_path):
    answers = run(tmp_path, FakeImageModel())
    assert answers == {f"{p}/{n}": f"predictions/{p}/{n}.png" for p in range(5) for n in range(2)}
    assert_expected_images(tmp_path, make_requests(tmp_path))
    assert {file.suffix for file in (tmp_path / "predictions").rglob("*") if file.is_file()} == {".png"}
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize(
    ("known", "options", "expected"),
    [
        (("guidance_scale", "temperature"), OPTIONS, {"guidance_scale": 5.0, "temperature": 1.0}),
        (("guidance_scale", "steps"), OPTIONS, {"guidance_scale": 5.0}),
        (("guidance_scale", "temperature"), {"guidance_scale": "model", "temperature": "model"}, {}),
    ],
)
def test_the_model_gets_the_settings_that_it_has_and_that_are_set(tmp_path, known, options, expected):
    model = FakeImageModel()
    model.sampler_settings = known
    run(tmp_path, model, options=options, parallel_window=4)
    assert all(settings == expected | {"parallel_window": 4} for settings in model.settings)


def test_batches_are_full_and_have_one_padded_length(tmp_path):
    model = FakeImageModel()
    run(tmp_path, model, batch_size=3)
    assert [[indices for _, indices in batch] for batch in model.batches] == [
        [(3, 0), (3, 1), (3, 1)],
        [(1, 0), (1, 1), (1, 1)],
        [(0, 0), (0, 1), (2, 0)],
        [(2, 1), (4, 0), (4, 1)],
    ]


def test_a_killed_run_resumes_and_generates_each_image_once(tmp_path):
    killed, second, third = FakeImageModel(stop_at=2), FakeImageModel(), FakeImageModel()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed, batch_size=2)
    done = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(done) == 4
    assert all((tmp_path / line["answer"]).exists() for line in done)
    answers = run(tmp_path, second, batch_size=3)
    generated = [indices for model in (killed, second) for batch in model.batches for indices in dict.fromkeys(batch)]
    assert len(generated) == len(set(generated)) == len(answers) == 10
    assert_expected_images(tmp_path, make_requests(tmp_path))
    assert run(tmp_path, third) == answers
    assert third.batches == []


def test_two_processes_generate_the_images_of_one(tmp_path):
    barrier = threading.Barrier(2)

    def process(index):
        return run(tmp_path, FakeImageModel(), batch_size=2, cluster=ThreadCluster(index, barrier))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process, range(2))
    assert second is None
    requests = make_requests(tmp_path)
    assert list(first) == [request.id for request in requests]
    assert_expected_images(tmp_path, requests)


def test_images_are_resized_to_the_requested_size(tmp_path):
    requests = make_requests(tmp_path, ["ink"], size=8)
    run(tmp_path, FakeImageModel(), requests=requests)
    whole = Image.fromarray(expected_pixels("ink", (0, 0), 3))
    expected = np.asarray(whole.resize((8, 8), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(read_pixels(tmp_path / requests[0].file), expected)


def test_a_missing_image_is_reported(tmp_path):
    answers = {id: str(tmp_path / file) for id, file in run(tmp_path, FakeImageModel()).items()}
    (tmp_path / "predictions" / "2" / "1.png").unlink()
    with pytest.raises(JanusError, match=r"2/1.png was generated but is missing now; remove the line of 2/1 from"):
        generated_files(make_requests(tmp_path), answers)


def test_an_invalid_prompt_is_reported_before_generation(tmp_path):
    def reject(prompt):
        if prompt == "sky":
            raise JanusError("The prompt is empty.")
        return prompt

    model = FakeImageModel()
    model.processor.generation_prompt = reject
    with pytest.raises(JanusError, match=r"^The prompt of 4/0: The prompt is empty"):
        run(tmp_path, model)
    assert model.batches == []


@pytest.mark.slow
def test_images_equal_those_of_generate_with_another_batch_size_and_mesh(tmp_path):
    prompts = ["A red boat", "Ink", "A lake and a house"]
    expected = tiny.pretrained().generate(prompts, 2, seed=3)
    requests = make_requests(tmp_path, prompts)
    run(tmp_path, tiny.pretrained(make_mesh(2, 1, 1, jax.devices()[:2])), requests=requests)
    for request in requests:
        image = np.asarray(expected[request.prompt_index][request.image_index], int)
        assert np.abs(read_pixels(tmp_path / request.file) - image).max() <= 1
