"""Scores of the benchmarks of the emoji example."""

import numpy as np
import pytest
from PIL import Image

from examples.emoji import generation_benchmark, understanding_benchmark
from janus_jax.processing import open_image
from janus_jax.training.siglip import CaptionMatcher


def test_exact_answers_are_right_and_another_tone_has_its_own_score(workdir):
    questions = understanding_benchmark.read(workdir, {})
    right = {question.id: question.answer for question in questions}
    scores = understanding_benchmark.score(questions, right, {})
    assert {value for name, value in scores.items() if "chance" not in name} == {1.0}
    assert scores["choice of 4, chance"] == 0.25
    assert scores["category, chance"] == 0.5
    wrong = {id: answer.replace("light", "dark") for id, answer in right.items()}
    scores = understanding_benchmark.score(questions, wrong, {})
    assert (scores["name"], scores["name without tone"]) == (0.0, 1.0)


class ByPixels:
    """Matches each picture with the prompt of the same picture."""

    def __init__(self, requests):
        self._known = {one.prompt: _pixels(one.data / "data" / "pictures" / one.picture) for one in requests}

    def similarity(self, images, captions):
        known = np.stack([self._known[caption] for caption in captions])
        return -np.stack([np.abs(known - np.asarray(image, float)).sum(axis=(1, 2, 3)) for image in images])


def _pixels(file):
    return np.asarray(open_image(file, background="white"), float)


def test_real_pictures_are_ranked_first_and_copies_are_found(workdir, tmp_path, monkeypatch):
    requests = generation_benchmark.read(workdir, {})
    monkeypatch.setattr(CaptionMatcher, "from_directory", lambda folder: ByPixels(requests))
    answers = {}
    for request in requests:
        answers[request.id] = str(tmp_path / f"{request.id}.png")
        open_image(workdir / "data" / "pictures" / request.picture, background="white").save(answers[request.id])
    scores = generation_benchmark.score(requests, answers, {})
    count = sum(request.split == "train" for request in requests)
    assert count == 5
    assert scores["train: first of 5"] == scores["train: first of 5, real pictures"] == 1.0
    assert scores["train: first of 5, chance"] == pytest.approx(1 / 5)
    assert scores["train: nearest"] == scores["emoji: nearest"] == 1.0
    assert scores["train: distance"] == pytest.approx(0, abs=1e-3)
    assert scores["train: distance, real pictures"] > 0.01
    assert scores["emoji: distance"] > 0.01
    generation_benchmark.write_predictions(requests, answers, tmp_path)
    assert Image.open(tmp_path / "sheet.png").size == (12 * 68, 6 * 68)
