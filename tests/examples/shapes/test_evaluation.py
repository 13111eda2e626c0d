"""Evaluation of a model that is always correct, and of one that always gives the same answer and image."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from examples.shapes import drawings_benchmark as drawings
from examples.shapes import edits_benchmark as edits
from examples.shapes import generation_benchmark as generation
from examples.shapes import understanding_benchmark as understanding
from examples.shapes.configs import janus
from examples.shapes.dataset import (
    Limits,
    Split,
    render,
    sample_drawing_tasks,
    sample_edits,
    sample_prompts,
    sample_questions,
)
from examples.shapes.evaluation import (
    ShapesProtocol,
    evaluate_drawing,
    evaluate_editing,
    evaluate_generation,
    evaluate_understanding,
    score_table,
)
from examples.shapes.models import JANUS
from janus_jax.evaluation.benchmark import AnswerSettings
from janus_jax.processing import ImageWithTokens, Processor
from tests.commands.conftest import ROOT, run

PROTOCOL = ShapesProtocol(per_topic=6, per_category=4, per_kind=2, per_plot=3, batch_size=5)
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
            understanding_sequence=lambda messages, images, system_prompt, background: messages[0],
            generation_prompt=str.split,
        )
        self._answers = {}
        for question in sample_questions(Split.TEST, PROTOCOL.per_topic, SEED):
            self._answers[question.text, render(question.scene).tobytes()] = question.answer
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


class Editor:
    """Edits correctly, or returns the source."""

    def __init__(self, knows=True):
        self.knows = knows
        self.batches = 0
        self.processor = Processor.from_directory(JANUS, janus.MODEL)
        self._targets = {}
        for edit in sample_edits(PROTOCOL.per_kind, Limits(split=Split.TEST), SEED):
            self._targets[edit.request.text, render(edit.source).tobytes()] = edit.target

    def sample_edits(self, edits, numbers, seed, **settings):
        self.batches += 1
        assert settings["style"] == "janus_4o"
        return [self._edited(source.convert("RGB"), text) for (source,), text in edits]

    def _edited(self, source, text):
        return Image.fromarray(render(self._targets[text, np.asarray(source).tobytes()])) if self.knows else source


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
    result = evaluate_editing(Editor(), tmp_path / "edits", PROTOCOL)
    assert result.scores.correct.overall == result.scores.kept == 1
    assert result.chance.correct.overall < 0.7
    again = Editor()
    assert evaluate_editing(again, tmp_path / "edits", PROTOCOL).scores == result.scores
    assert again.batches == 0
    unchanged = evaluate_editing(Editor(knows=False), tmp_path / "unchanged", PROTOCOL)
    assert (unchanged.scores.correct.overall, unchanged.scores.kept, unchanged.scores.unchanged) == (0, 1, 1)


def test_the_benchmark_of_edits_gives_the_same_scores(tmp_path):
    result = evaluate_editing(Editor(), tmp_path, PROTOCOL)
    options = edits.BENCHMARK.resolve_options({"per_kind": "2"})
    items = edits.read(tmp_path, options)
    scores = edits.score(items, {item.id: str(tmp_path / item.file) for item in items}, options)
    assert scores["overall"] == result.scores.correct.overall
    assert scores["chance"] == result.chance.correct.overall
    (tmp_path / "predictions").mkdir(exist_ok=True)
    edits.write_predictions(items, {item.id: str(tmp_path / item.file) for item in items}, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "shapes.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines] == [True] * len(items)


class Painter:
    """Replies to each first message with the same picture, and to all others with a text."""

    def __init__(self, reply="seven"):
        self.reply = reply
        self.conversations = 0
        self.scenes = {
            task.drawing.text: task.drawing.scene for task in sample_drawing_tasks(Split.TEST, PROTOCOL.per_plot, SEED)
        }

    def converse(self, messages, max_new_tokens, seed, image_sampling):
        assert image_sampling["max_images"] == 1
        if len(messages) > 1:
            assert messages[1]["content"] == "<image_placeholder>"
            (picture,) = messages[1]["images"]
            assert np.asarray(picture.image).any()
            return iter([self.reply[:2], self.reply[2:]])
        self.conversations += 1
        image = Image.fromarray(render(self.scenes[messages[0]["content"]]))
        return iter([" ", ImageWithTokens(image, np.zeros(36, np.int32)), ""])


def test_conversations_are_scored_and_not_repeated(tmp_path):
    result = evaluate_drawing(Painter(), tmp_path, PROTOCOL)
    assert result.scores.overall == 0
    assert [len(one.turns) for one in result.transcripts] == [2] * 9
    assert result.transcripts[0].turns[-1].reason == "no picture"
    assert all(not one.turns[0].reason for one in result.transcripts)
    again = Painter()
    assert evaluate_drawing(again, tmp_path, PROTOCOL).scores == result.scores
    assert again.conversations == 0


def test_the_benchmark_of_conversations_gives_the_same_scores(tmp_path):
    options = drawings.BENCHMARK.resolve_options({"per_plot": "3"})
    items = drawings.read(tmp_path, options)
    settings = AnswerSettings(tmp_path, options, 0, 5)
    answers = {}
    for batch in drawings.answer(Painter("yes"), items, settings):
        answers |= batch
    scores = drawings.score(items, answers, options)
    assert scores["edit"] == scores["edit_question"] == 0
    drawings.write_predictions(items, answers, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "shapes.jsonl").read_text().splitlines()]
    assert [line["plot"] for line in lines] == ["edit"] * 3 + ["question"] * 3 + ["edit_question"] * 3
    assert [line["correct"] for line in lines[3:6]] == [
        line["turns"][-1]["assistant"] == "yes" and not line["turns"][-1]["reason"] for line in lines[3:6]
    ]
    first = lines[0]["turns"][0]
    expected = render(items[0].task.drawing.scene)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / first["assistant"])), expected)


@pytest.mark.nightly
def test_janus_evaluate_runs_edits_and_conversations(tmp_path):
    names = {"shapes_edits": "edits", "shapes_drawings": "drawings"}
    benchmarks = ",".join(f"examples.shapes.{module}_benchmark:{name}" for name, module in names.items())
    flags = (f"--model={JANUS}", f"--benchmark={benchmarks}", f"--out={tmp_path}", "--limit=2", "--batch_size=2")
    finished = run("launch.evaluate", *flags, "--dtype=float32", cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    for name in names:
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert {"overall", "chance"} <= set(results["scores"])
        assert (tmp_path / name / "predictions" / "shapes.jsonl").read_text().count("\n") == 2
