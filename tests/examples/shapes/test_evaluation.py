"""What the embedded world asks and how it counts, with models that know everything, or nothing."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from examples.shapes import generation_benchmark as generation
from examples.shapes import understanding_benchmark as understanding
from examples.shapes.dataset import Split, draw, prompts, questions
from examples.shapes.evaluation import ShapesProtocol, evaluate_generation, evaluate_understanding, figures

PROTOCOL = ShapesProtocol(per_topic=6, per_category=4, batch_size=5)
SEED = understanding.SEED


class Oracle:
    """Answers and draws what is right, or always the same."""

    sampler_settings = ("guidance_scale", "temperature")

    def __init__(self, knows=True):
        self.knows = knows
        self.batches = 0
        self.processor = SimpleNamespace(
            und_tokens=36,
            tokenizer=SimpleNamespace(encode=str.split),
            understanding_sequence=lambda messages, images, system_prompt: messages[0],
            generation_prompt=str.split,
        )
        self._answers = {}
        for question in questions(Split.TEST, PROTOCOL.per_topic, SEED):
            self._answers[question.text, draw(question.scene).tobytes()] = question.answer
        self._scenes = {prompt.text: prompt.scene for prompt in prompts(Split.TEST, PROTOCOL.per_category, SEED)}

    def answer(self, rows, max_new_tokens, temperature):
        self.batches += 1
        assert max_new_tokens > 3
        return [self._answer(message) for message in rows]

    def _answer(self, message):
        text = message["content"].removeprefix("<image_placeholder>\n")
        (picture,) = message["images"]
        pixels = np.asarray(Image.open(io.BytesIO(picture))).tobytes()
        return self._answers[text, pixels] if self.knows else "seven"

    def sample_images(self, texts, numbers, seed, **settings):
        self.batches += 1
        scenes = [self._scenes[text] if self.knows else next(iter(self._scenes.values())) for text in texts]
        return [Image.fromarray(draw(scene)) for scene in scenes]


def both(model, folder):
    return (
        evaluate_understanding(model, folder / "answers", PROTOCOL),
        evaluate_generation(model, folder / "drawings", PROTOCOL),
    )


@pytest.fixture(scope="module")
def wise(tmp_path_factory):
    return figures(*both(Oracle(), tmp_path_factory.mktemp("wise")))


def test_who_knows_everything_has_all_points(wise):
    points = {name: value for name, value in wise.items() if not name.startswith("chance")}
    assert set(points.values()) == {1.0}


def test_every_topic_and_category_has_a_score_and_a_chance(wise):
    names = {"understanding.count", "generation.position", "generation.strict", "generation.overall"}
    assert names | {f"chance.{name}" for name in names} <= set(wise)


def test_chance_is_between(wise):
    assert 0 < wise["chance.understanding"] < 0.6
    assert 0 <= wise["chance.generation.overall"] < 0.6


def test_who_knows_nothing_has_none(tmp_path):
    answered, drawn = both(Oracle(knows=False), tmp_path)
    assert answered.scores.overall == 0
    assert not any(answered.right)
    assert drawn.scores.strict.overall < 0.3
    assert drawn.verdicts[-1].reason


def test_what_is_done_is_not_asked_again(tmp_path):
    first, again = Oracle(), Oracle()
    assert figures(*both(first, tmp_path)) == figures(*both(again, tmp_path))
    assert first.batches > 0 == again.batches


def test_the_command_counts_the_same(tmp_path):
    options = {"split": "test", "per_topic": "6", "per_category": "4"}
    answered, drawn = both(Oracle(), tmp_path)
    asked = understanding.read(tmp_path, options)
    answers = {item.id: item.world.answer for item in asked[1:]} | {asked[0].id: "seven"}
    scores = understanding.score(asked, answers, options)
    assert scores["overall"] == pytest.approx(1 - 1 / 30)
    assert scores["chance"] == answered.chance.overall
    pictures = generation.read(tmp_path, options)
    files = {picture.id: str(tmp_path / "drawings" / picture.file) for picture in pictures}
    assert generation.score(pictures, files, options)["overall"] == drawn.scores.geneval.overall == 1
    understanding.write_predictions(asked, answers, tmp_path)
    told = [json.loads(line) for line in (tmp_path / "shapes.jsonl").read_text().splitlines()]
    assert [line["right"] for line in told] == [False] + [True] * 29
