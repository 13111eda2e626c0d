"""Evaluation of a model that is always correct, and of one that always gives the same answer and image."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from examples.shapes import edits_benchmark as edits
from examples.shapes import generation_benchmark as generation
from examples.shapes import understanding_benchmark as understanding
from examples.shapes.dataset import Limits, Split, render, sample_edits, sample_prompts, sample_questions
from examples.shapes.evaluation import (
    ShapesProtocol,
    evaluate_editing,
    evaluate_generation,
    evaluate_understanding,
    score_table,
)

PROTOCOL = ShapesProtocol(per_topic=6, per_category=4, per_kind=2, batch_size=5)
SEED = understanding.SEED


class FakeModel:
    """Gives the correct answers and images, or always the same ones."""

    sampler_settings = ("guidance_scale", "temperature")

    def __init__(self, knows=True):
        self.knows = knows
        self.batches = 0
        self.processor = SimpleNamespace(
            num_und_tokens=36,
            tokenizer=SimpleNamespace(encode=str.split),
            understanding_sequence=lambda messages, images, system_prompt: messages[0],
            generation_prompt=str.split,
        )
        self._answers = {}
        for question in sample_questions(Split.TEST, PROTOCOL.per_topic, SEED):
            self._answers[question.text, render(question.scene).tobytes()] = question.answer
        self._edits = {}
        for edit in sample_edits(PROTOCOL.per_kind, Limits(split=Split.TEST), SEED):
            self._edits[edit.request.text, render(edit.source).tobytes()] = edit.target
        self._scenes = {prompt.text: prompt.scene for prompt in sample_prompts(Split.TEST, PROTOCOL.per_category, SEED)}

    def answer(self, rows, max_new_tokens, temperature):
        self.batches += 1
        assert max_new_tokens > 3
        return [self._answer(message) for message in rows]

    def _answer(self, message):
        text = message["content"].removeprefix("<image_placeholder>\n")
        (image,) = message["images"]
        pixels = np.asarray(Image.open(io.BytesIO(image))).tobytes()
        return self._answers[text, pixels] if self.knows else "seven"

    def sample_images(self, texts, numbers, seed, **settings):
        self.batches += 1
        scenes = [self._scenes[text] if self.knows else next(iter(self._scenes.values())) for text in texts]
        return [Image.fromarray(render(scene)) for scene in scenes]

    def edit_stream(self, edits, seed, batch_size, **settings):
        self.batches += 1
        assert len(edits) == batch_size
        for (source,), text in edits:
            image = np.asarray(Image.open(io.BytesIO(source)))
            if self.knows:
                image = render(self._edits[text, image.tobytes()])
            yield SimpleNamespace(image=Image.fromarray(image))


def evaluate(model, folder):
    return (
        evaluate_understanding(model, folder / "answers", PROTOCOL),
        evaluate_generation(model, folder / "images", PROTOCOL),
    )


def test_a_perfect_model_scores_one_and_chance_is_lower(tmp_path):
    scores = score_table(*evaluate(FakeModel(), tmp_path))
    names = {"understanding.count", "generation.position", "generation.strict", "generation.overall"}
    assert names | {f"chance.{name}" for name in names} <= set(scores)
    assert {value for name, value in scores.items() if not name.startswith("chance")} == {1.0}
    assert 0 < scores["chance.understanding"] < 0.6
    assert 0 <= scores["chance.generation.overall"] < 0.6


def test_a_constant_model_scores_low(tmp_path):
    answers, images = evaluate(FakeModel(knows=False), tmp_path)
    assert answers.scores.overall == 0
    assert not any(answers.correct)
    assert images.scores.strict.overall < 0.3
    assert images.verdicts[-1].reason


def test_completed_questions_are_not_asked_again(tmp_path):
    first, again = FakeModel(), FakeModel()
    assert score_table(*evaluate(first, tmp_path)) == score_table(*evaluate(again, tmp_path))
    assert first.batches > 0 == again.batches


def test_benchmarks_give_the_same_scores(tmp_path):
    options = {"split": "test", "per_topic": "6", "per_category": "4"}
    expected_answers, expected_images = evaluate(FakeModel(), tmp_path)
    items = understanding.read(tmp_path, options)
    answers = {item.id: item.scene_question.answer for item in items[1:]} | {items[0].id: "seven"}
    scores = understanding.score(items, answers, options)
    assert scores["overall"] == pytest.approx(1 - 1 / 30)
    assert scores["chance"] == expected_answers.chance.overall
    requests = generation.read(tmp_path, options)
    files = {request.id: str(tmp_path / "images" / request.file) for request in requests}
    overall = generation.score(requests, files, options)["overall"]
    assert overall == expected_images.scores.geneval.overall == 1
    understanding.write_predictions(items, answers, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "shapes.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines] == [False] + [True] * 29


def test_edits_are_scored_and_not_repeated(tmp_path):
    result = evaluate_editing(FakeModel(), tmp_path / "edits", PROTOCOL)
    assert result.scores.correct.overall == result.scores.kept == 1
    assert result.chance.correct.overall < 0.7
    again = FakeModel()
    assert evaluate_editing(again, tmp_path / "edits", PROTOCOL).scores == result.scores
    assert again.batches == 0
    unchanged = evaluate_editing(FakeModel(knows=False), tmp_path / "unchanged", PROTOCOL)
    assert (unchanged.scores.correct.overall, unchanged.scores.kept, unchanged.scores.unchanged) == (0, 1, 1)


def test_the_benchmark_of_edits_gives_the_same_scores(tmp_path):
    result = evaluate_editing(FakeModel(), tmp_path, PROTOCOL)
    options = edits.BENCHMARK.resolve_options({"per_kind": "2"})
    items = edits.read(tmp_path, options)
    scores = edits.score(items, {item.id: str(tmp_path / item.file) for item in items}, options)
    assert scores["overall"] == result.scores.correct.overall
    assert scores["chance"] == result.chance.correct.overall
    (tmp_path / "predictions").mkdir(exist_ok=True)
    edits.write_predictions(items, {item.id: str(tmp_path / item.file) for item in items}, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "shapes.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines] == [True] * len(items)
