"""What the benchmark asks and how it counts, with models that know everything, or nothing."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from janus_jax.data.shapes import Split, draw, prompts, questions
from janus_jax.evaluate.shapes import ShapesProtocol, evaluate_generation, evaluate_understanding, figures

PROTOCOL = ShapesProtocol(per_topic=6, per_category=4, batch_size=5)
SEED = 1 << 16


class Oracle:
    """Answers and draws what is right, or always the same."""

    config = SimpleNamespace(und_encoder=SimpleNamespace(image_size=48))

    def __init__(self, knows=True):
        self.knows = knows
        self._answers = {}
        for question in questions(Split.TEST, PROTOCOL.per_topic, SEED):
            self._answers[question.text, draw(question.scene).tobytes()] = question.answer
        self._scenes = {prompt.text: prompt.scene for prompt in prompts(Split.TEST, PROTOCOL.per_category, SEED)}

    def chat_batch(self, conversations, max_new_tokens):
        assert max_new_tokens > 3
        return [self._answer(message) for (message,) in conversations]

    def _answer(self, message):
        text = message["content"].removeprefix("<image_placeholder>\n")
        return self._answers[text, np.asarray(message["images"][0]).tobytes()] if self.knows else "seven"

    def generate_stream(self, texts, per_prompt, guidance_scale, temperature, seed, *, batch_size):
        for number, text in enumerate(texts):
            scene = self._scenes[text] if self.knows else next(iter(self._scenes.values()))
            yield SimpleNamespace(prompt=number, number=0, image=Image.fromarray(draw(scene)))


@pytest.fixture(scope="module")
def wise():
    model = Oracle()
    return figures(evaluate_understanding(model, PROTOCOL), evaluate_generation(model, PROTOCOL))


def test_who_knows_everything_has_all_points(wise):
    points = {name: value for name, value in wise.items() if not name.startswith("chance")}
    assert set(points.values()) == {1.0}


def test_every_topic_and_category_has_a_score(wise):
    assert {"understanding.count", "generation.position", "generation.strict", "generation.overall"} <= set(wise)


def test_chance_is_between(wise):
    assert 0 < wise["chance.understanding"] < 0.6
    assert 0 <= wise["chance.generation"] < 0.6


def test_who_knows_nothing_has_few_points():
    model = Oracle(knows=False)
    scores = figures(evaluate_understanding(model, PROTOCOL), evaluate_generation(model, PROTOCOL))
    assert scores["understanding"] == 0
    assert scores["generation.overall"] < 0.5


def test_scores_do_not_depend_on_the_batch_size(wise):
    other = dataclasses.replace(PROTOCOL, batch_size=64)
    model = Oracle()
    assert figures(evaluate_understanding(model, other), evaluate_generation(model, other)) == wise


def test_progress_adds_up_to_all():
    told = []
    evaluate_understanding(Oracle(), PROTOCOL, told.append)
    assert sum(told) == 5 * PROTOCOL.per_topic
