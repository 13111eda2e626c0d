"""The shipped models and the demo."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

import janus_jax
from checkpoints_convert import open_checkpoint
from examples.shapes.configs import janus, janusflow
from examples.shapes.dataset import (
    DEFAULT_VOCABULARY,
    Limits,
    Question,
    Split,
    chance_of_answers,
    chance_of_drawings,
    chance_of_edits,
    chance_of_images,
    check_edit,
    check_image,
    converse,
    render,
    sample_drawing_tasks,
    sample_edits,
    sample_prompts,
    sample_questions,
    score_answers,
    score_edit_verdicts,
    score_transcripts,
    score_verdicts,
)
from examples.shapes.demo import __main__ as demo
from examples.shapes.demo.finetune import FineTuneSpec, FineTuning
from examples.shapes.demo.page import write_page
from examples.shapes.demo.scores import ContextScores, DemoScores, report
from examples.shapes.evaluation import (
    DrawingResult,
    EditingResult,
    GenerationResult,
    ShapesProtocol,
    UnderstandingResult,
    evaluate_drawing,
    evaluate_editing,
    evaluate_generation,
    evaluate_understanding,
)
from examples.shapes.models import JANUS, JANUS_EDITS, JANUSFLOW
from janus_jax.errors import JanusError
from janus_jax.processing import Processor
from tests.pseudo import CORPUS, make_checkpoint
from tests.tiny import CONFIG

NEW = FineTuneSpec().words


def demo_scores(knows=True, knows_new=True):
    """Returns the scores of a model that is always correct, or that always gives the same answer and image."""

    def results(vocabulary, about, knows):
        questions = sample_questions(Split.TEST, 2, 0, vocabulary, about)
        answers = [question.answer if knows else "seven" for question in questions]
        prompts = sample_prompts(Split.TEST, 2, 0, vocabulary, about)
        images = [render(prompt.scene if knows else prompts[0].scene) for prompt in prompts]
        verdicts = [check_image(prompt, image) for prompt, image in zip(prompts, images, strict=True)]
        return (
            UnderstandingResult(questions, answers, score_answers(questions, answers), chance_of_answers(questions)),
            GenerationResult(prompts, images, verdicts, score_verdicts(prompts, verdicts), chance_of_images(prompts)),
        )

    old = results(DEFAULT_VOCABULARY, frozenset(), knows)
    new = results(DEFAULT_VOCABULARY.with_extras(*NEW), frozenset(NEW), knows_new)
    return DemoScores(*old, *new)


class Echo:
    """Replies to requests with the correct picture or answer, or with the words "I cannot"."""

    def __init__(self, knows):
        self.knows = knows

    def reply(self, task, text, follow_up):
        if not self.knows:
            return "I cannot"
        if follow_up is None:
            return render(task.drawing.scene)
        return follow_up.answer if isinstance(follow_up, Question) else render(follow_up.target)


def context_scores(knows=True):
    """Returns the scores of a model that is always correct, or of one that returns the source image and words."""
    edits = sample_edits(1, Limits(split=Split.TEST), 0)
    images = [render(edit.target if knows else edit.source) for edit in edits]
    requests = [edit.request for edit in edits]
    verdicts = [
        check_edit(edit.request, edit.source, render(edit.source), image)
        for edit, image in zip(edits, images, strict=True)
    ]
    editing = EditingResult(edits, images, verdicts, score_edit_verdicts(requests, verdicts), chance_of_edits(edits))
    tasks = sample_drawing_tasks(Split.TEST, 1)
    transcripts = [converse(task, Echo(knows)) for task in tasks]
    drawing = DrawingResult(transcripts, score_transcripts(transcripts), chance_of_drawings(tasks))
    return ContextScores(editing, drawing)


TUNING = FineTuning(
    [{"step": step, "loss/understanding": 1 / step, "loss/generation": 2 / step} for step in range(1, 5)], 3, 2, 1
)


def test_the_report_has_all_scores_and_the_loss_on_old_words():
    scores = report(demo_scores(knows_new=False), demo_scores(), context_scores(), minutes=7)
    assert scores["understanding"] == scores["generation.overall"] == scores["generation.strict"] == 1
    assert scores["new.understanding.before"] == 0 < scores["new.understanding"] == scores["new.generation"] == 1
    assert scores["old_drop"] == 0
    assert scores["minutes"] == 7
    names = ("edits", "edits.met", "edits.objects_kept", "conversations", "conversations.edit_question")
    assert all(scores[name] == 1 >= scores[f"chance.{name}"] for name in names)
    worse = report(demo_scores(), demo_scores(knows=False), context_scores(knows=False), 7)
    assert worse["old_drop"] == 1
    assert worse["edits"] == worse["conversations"] == 0 < worse["edits.objects_kept"]


def test_the_page_shows_questions_images_and_verdicts_without_network(tmp_path):
    before, after, context = demo_scores(knows_new=False), demo_scores(), context_scores()
    flow = demo_scores(knows=False).generation
    page = tmp_path / "index.html"
    scores = report(before, after, context, 7)
    write_page(page, before, after, context=context, flow=flow, tuning=TUNING, report=scores, words=NEW)
    text = page.read_text()
    texts = (before.understanding.questions[0].text, before.generation.prompts[0].text, flow.verdicts[-1].reason)
    for words in (*texts, "as asked for", "seven"):
        assert words.replace("'", "&#39;") in text
    *_, turns = (one.turns for one in context.drawing.transcripts)
    assert len(turns) == 3
    for words in (*(edit.request.text for edit in context.editing.edits), *(turn.text for turn in turns)):
        assert words in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert text.count("data:image/png") >= 2 * len(NEW)
    assert "<svg" in text


def test_the_page_shows_a_conversation_without_images(tmp_path):
    context, page = context_scores(knows=False), tmp_path / "index.html"
    before = demo_scores()
    flow, scores = before.generation, report(before, before, context, 7)
    write_page(page, before, before, context=context, flow=flow, tuning=TUNING, report=scores, words=NEW)
    text = page.read_text()
    assert "I cannot" in text
    assert "no picture" in text


def test_a_changed_weight_is_detected(tmp_path):
    make_checkpoint(tmp_path / "before", CONFIG, CORPUS)
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    assert demo.compare_checkpoints(tmp_path / "before", tmp_path / "after") > 0
    file = tmp_path / "after" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(JanusError, match="damaged"):
        demo.compare_checkpoints(tmp_path / "before", tmp_path / "after")


SHIPPED = pytest.mark.parametrize(
    ("folder", "model"), [(JANUS, janus.MODEL), (JANUS_EDITS, janus.MODEL), (JANUSFLOW, janusflow.MODEL)]
)


@SHIPPED
def test_shipped_models_have_the_config_of_their_recipe_and_are_small(folder, model):
    assert replace(open_checkpoint(folder).config, name="") == replace(model, name="")
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 12_000_000
    assert Processor.from_directory(folder, open_checkpoint(folder).config).system_prompt == ""


@pytest.mark.slow
@SHIPPED
def test_shipped_models_score_above_chance(folder, model, tmp_path):
    loaded, protocol = janus_jax.load(folder, "float32"), ShapesProtocol(per_topic=20, per_category=4)
    answers = evaluate_understanding(loaded, tmp_path / "answers", protocol)
    assert answers.scores.overall > answers.chance.overall + 0.1
    images = evaluate_generation(loaded, tmp_path / "images", protocol)
    assert images.scores.geneval.overall > images.chance.geneval.overall + 0.2


@pytest.mark.slow
def test_the_shipped_editor_edits_and_converses(tmp_path):
    loaded, protocol = janus_jax.load(JANUS_EDITS, "float32"), ShapesProtocol(per_kind=5, per_plot=4)
    edits = evaluate_editing(loaded, tmp_path / "edits", protocol)
    assert edits.scores.correct.overall > 0.7
    assert edits.scores.kept > 0.9
    conversations = evaluate_drawing(loaded, tmp_path / "conversations", protocol)
    assert conversations.scores.overall > 0.5


@pytest.mark.nightly
def test_the_whole_demo(tmp_path):
    spec = FineTuneSpec(new_records=256, old_records=256, steps=40, killed_at=28)
    plan = demo.DemoPlan(
        per_topic=4,
        per_category=2,
        new_per_topic=2,
        new_per_category=1,
        per_kind=1,
        per_plot=1,
        finetune=spec,
        flow_per_category=1,
    )
    scores = demo.run(tmp_path, JANUS, JANUS_EDITS, JANUSFLOW, plan)
    assert json.loads((tmp_path / "report.json").read_text()) == scores
    names = {"understanding", "generation.overall", "generation.position", "generation.strict", "new.understanding"}
    names |= {"edits", "edits.met", "conversations", "conversations.edit_question", "chance.edits"}
    assert names | {"new.generation", "old_drop", "minutes"} <= set(scores)
    assert all(np.isfinite(value) for value in scores.values())
    assert (tmp_path / "index.html").stat().st_size > 100_000
    losses = [json.loads(line) for line in (tmp_path / "run" / "stage_1" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in losses if "loss" in line] == list(range(1, 41))
