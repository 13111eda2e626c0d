"""Every picture is drawn once, by its own numbers, however often a run is killed and however the work is shared."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.generation.generate_images import drawing
from janus_jax.evaluation.generation.image_requests import drawn_files, pictures_of
from janus_jax.evaluation.runner import collect
from janus_jax.sharding import make_mesh
from tests import tiny
from tests.evaluation.generation.painting import FakePainter, painted, pixels
from tests.evaluation.test_runner import Threads

BEGAN = {"benchmark": "walls", "seed": 3}
OPTIONS = {"guidance_scale": "5", "temperature": "1"}
PROMPTS = ["ink", "a boat " * 12, "red", "a lake " * 14, "sky"]


def wanted(tmp_path, prompts=PROMPTS, per_prompt=2, side=None):
    return [
        picture
        for index, prompt in enumerate(prompts)
        for picture in pictures_of(
            prompt, index, [f"predictions/{index}/{n}.png" for n in range(per_prompt)], tmp_path, side
        )
    ]


def run(out, painter, batch_size=4, pictures=None, seed=3):
    items = pictures or wanted(out)
    return collect(items, drawing(painter, out, OPTIONS, seed, batch_size), out, BEGAN)


def as_they_should_be(out, pictures):
    return all(
        (pixels(out / picture.file) == painted(picture.prompt, (picture.prompt_number, picture.number), 3)).all()
        for picture in pictures
    )


def test_every_picture_is_a_file_that_its_answer_names(tmp_path):
    answers = run(tmp_path, FakePainter())
    assert answers == {f"{p}/{n}": f"predictions/{p}/{n}.png" for p in range(5) for n in range(2)}
    assert as_they_should_be(tmp_path, wanted(tmp_path))


def test_settings_that_the_model_has_not_are_passed_over(tmp_path):
    painter = FakePainter()
    painter.sampler_settings = ("guidance_scale", "steps")
    run(tmp_path, painter)
    assert all(settings == {"guidance_scale": 5.0} for settings in painter.settings)


def test_batches_are_full_and_of_one_length(tmp_path):
    painter = FakePainter()
    run(tmp_path, painter, batch_size=3)
    assert [[number for _, number in batch] for batch in painter.asked] == [
        [(3, 0), (3, 1), (3, 1)],
        [(1, 0), (1, 1), (1, 1)],
        [(0, 0), (0, 1), (2, 0)],
        [(2, 1), (4, 0), (4, 1)],
    ]
    assert all(settings == {"guidance_scale": 5.0, "temperature": 1.0} for settings in painter.settings)


def test_what_is_the_models_own_is_left_to_it(tmp_path):
    painter = FakePainter()
    work = drawing(painter, tmp_path, {"guidance_scale": "own", "temperature": "own"}, 3, 4)
    collect(wanted(tmp_path), work, tmp_path, BEGAN)
    assert all(settings == {} for settings in painter.settings)


def test_a_killed_run_goes_on_and_draws_nothing_twice(tmp_path):
    killed, second, third = FakePainter(stop_at=2), FakePainter(), FakePainter()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed, batch_size=2)
    # What is in the journal is on the disk.
    done = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(done) == 4
    assert all((tmp_path / line["answer"]).exists() for line in done)
    answers = run(tmp_path, second, batch_size=3)
    drawn = [numbers for painter in (killed, second) for batch in painter.asked for numbers in dict.fromkeys(batch)]
    assert len(drawn) == len(set(drawn)) == len(answers) == 10
    assert as_they_should_be(tmp_path, wanted(tmp_path))
    assert run(tmp_path, third) == answers
    assert third.asked == []


def test_two_processes_draw_what_one_does(tmp_path):
    barrier = threading.Barrier(2)
    pictures = wanted(tmp_path)

    def one(index):
        work = drawing(FakePainter(), tmp_path, OPTIONS, 3, 2)
        return collect(pictures, work, tmp_path, BEGAN, Threads(index, barrier))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one, range(2))
    assert second is None
    assert list(first) == [picture.id for picture in pictures]
    assert as_they_should_be(tmp_path, pictures)


def test_a_side_that_is_asked_for_is_kept(tmp_path):
    pictures = wanted(tmp_path, ["ink"], side=8)
    run(tmp_path, FakePainter(), pictures=pictures)
    assert pixels(tmp_path / pictures[0].file).shape == (8, 8, 3)


def test_no_half_of_a_picture_is_left(tmp_path):
    run(tmp_path, FakePainter())
    assert {file.suffix for file in (tmp_path / "predictions").rglob("*") if file.is_file()} == {".png"}
    assert not list(tmp_path.rglob(".*"))


def test_a_picture_that_is_gone_is_told(tmp_path):
    pictures = wanted(tmp_path)
    answers = {id: str(tmp_path / file) for id, file in run(tmp_path, FakePainter()).items()}
    (tmp_path / "predictions" / "2" / "1.png").unlink()
    with pytest.raises(JanusError, match=r"2/1.png was drawn and is gone; remove the line of 2/1 from"):
        drawn_files(pictures, answers)


def test_a_prompt_that_is_too_long_is_told_before_anything_is_drawn(tmp_path):
    class Strict(FakePainter):
        def __init__(self):
            super().__init__()
            self.processor.generation_prompt = self.check

        def check(self, prompt):
            if prompt == "sky":
                raise JanusError("The prompt is empty.")
            return prompt

    painter = Strict()
    with pytest.raises(JanusError, match=r"^The prompt of 4/0: The prompt is empty"):
        run(tmp_path, painter)
    assert painter.asked == []


def test_pictures_are_those_of_generate_whatever_the_batch_size_and_the_mesh(tmp_path):
    prompts = ["A red boat", "Ink", "A lake and a house"]
    expected = tiny.pretrained().generate(prompts, 2, seed=3)
    pictures = wanted(tmp_path, prompts)
    run(tmp_path, tiny.pretrained(make_mesh(2, 1, 1, jax.devices()[:2])), pictures=pictures)
    for picture in pictures:
        alike = np.asarray(expected[picture.prompt_number][picture.number], int)
        assert np.abs(pixels(tmp_path / picture.file) - alike).max() <= 1
