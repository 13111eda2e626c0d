"""The shipped models, and what the demo makes of it."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

import janus_jax
from checkpoints_convert import open_checkpoint
from examples.shapes.configs import finetune as shapes_finetune
from examples.shapes.configs import janus as shapes_janus
from examples.shapes.configs import janusflow as shapes_janusflow
from examples.shapes.dataset import (
    DEFAULT,
    EVERYTHING,
    Split,
    chance_of_answers,
    chance_of_drawings,
    draw,
    judge,
    prompts,
    questions,
    score_answers,
    score_verdicts,
)
from examples.shapes.demo import run as demo
from examples.shapes.demo.finetune import FineTuneSpec, FineTuning
from examples.shapes.demo.page import write_page
from examples.shapes.demo.scores import DemoScores, report
from examples.shapes.evaluation import (
    Generation,
    ShapesProtocol,
    Understanding,
    evaluate_generation,
    evaluate_understanding,
)
from examples.shapes.models import FLOW_SHAPES, SHAPES
from janus_jax.errors import JanusError
from janus_jax.processing import Processor
from tests.pseudo import CORPUS, make_checkpoint
from tests.tiny import CONFIG

NEW = FineTuneSpec().words


def scored(knows=True, knows_new=True):
    """Of a model that knows all, or answers and draws always the same."""

    def both(vocabulary, about, knows):
        asked = questions(Split.TEST, 2, 0, vocabulary, about)
        answers = [question.answer if knows else "seven" for question in asked]
        wanted = prompts(Split.TEST, 2, 0, vocabulary, about)
        images = [draw(prompt.scene if knows else wanted[0].scene) for prompt in wanted]
        verdicts = [judge(prompt, image) for prompt, image in zip(wanted, images, strict=True)]
        return (
            Understanding(asked, answers, score_answers(asked, answers), chance_of_answers(asked)),
            Generation(wanted, images, verdicts, score_verdicts(wanted, verdicts), chance_of_drawings(wanted)),
        )

    old = both(DEFAULT, frozenset(), knows)
    new = both(DEFAULT.with_extras(*NEW), frozenset(NEW), knows_new)
    return DemoScores(*old, *new)


TUNING = FineTuning(
    [{"step": step, "loss/understanding": 1 / step, "loss/generation": 2 / step} for step in range(1, 5)], 3, 2, 1
)


def test_the_report_has_the_scores_and_what_the_old_ones_lost():
    figures = report(scored(knows_new=False), scored(), minutes=7)
    assert figures["understanding"] == figures["generation.overall"] == figures["generation.strict"] == 1
    assert figures["new.understanding.before"] == 0 < figures["new.understanding"] == figures["new.generation"] == 1
    assert figures["old_drop"] == 0
    assert figures["minutes"] == 7
    assert report(scored(), scored(knows=False), 7)["old_drop"] == 1


def test_the_page_shows_questions_drawings_and_verdicts_and_needs_no_network(tmp_path):
    before, after = scored(knows_new=False), scored()
    flowed = scored(knows=False).generation
    write_page(tmp_path / "index.html", before, after, flowed, TUNING, report(before, after, 7), NEW)
    page = (tmp_path / "index.html").read_text()
    told = (flowed.verdicts[-1].reason, "as asked for", "seven")
    for words in (before.understanding.questions[0].text, before.generation.prompts[0].text, *told):
        assert words.replace("'", "&#39;") in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert page.count("data:image/png") >= 2 * len(NEW)
    assert "<svg" in page


def test_a_changed_weight_is_noticed(tmp_path):
    make_checkpoint(tmp_path / "before", CONFIG, CORPUS)
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    assert demo.compare(tmp_path / "before", tmp_path / "after") > 0
    file = tmp_path / "after" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(JanusError, match="damaged"):
        demo.compare(tmp_path / "before", tmp_path / "after")


SHIPPED = pytest.mark.parametrize(
    ("shipped", "model"), [(SHAPES, shapes_janus.MODEL), (FLOW_SHAPES, shapes_janusflow.MODEL)]
)


@SHIPPED
def test_the_shipped_models_are_the_recipes_and_small(shipped, model):
    assert replace(open_checkpoint(shipped).config, name="") == replace(model, name="")
    assert sum(file.stat().st_size for file in shipped.rglob("*")) < 12_000_000


@SHIPPED
def test_the_shipped_models_are_asked_as_they_were_trained(shipped, model):
    assert Processor.from_directory(shipped, open_checkpoint(shipped).config).system_prompt == ""


def test_the_new_words_are_none_that_it_was_trained_on():
    assert not set(NEW) & {*DEFAULT.shapes, *DEFAULT.colours}
    assert set(NEW) <= {*EVERYTHING.shapes, *EVERYTHING.colours}
    assert FineTuneSpec().killed_at < shapes_finetune.STAGE.steps


@SHIPPED
def test_the_shipped_models_answer_better_than_guessing(shipped, model, tmp_path):
    answered = evaluate_understanding(janus_jax.load(shipped, "float32"), tmp_path, ShapesProtocol(per_topic=20))
    assert answered.scores.overall > answered.chance.overall + 0.1


@SHIPPED
def test_the_shipped_models_draw_better_than_guessing(shipped, model, tmp_path):
    drawn = evaluate_generation(janus_jax.load(shipped, "float32"), tmp_path, ShapesProtocol(per_category=4))
    assert drawn.scores.geneval.overall > drawn.chance.geneval.overall + 0.2


@pytest.mark.slow
def test_the_whole_demo(tmp_path):
    lesson = FineTuneSpec(new_records=256, old_records=256, steps=40, killed_at=28)
    plan = demo.Plan(asked=4, drawn=2, new_asked=2, new_drawn=1, lesson=lesson, flowed=1)
    figures = demo.run(tmp_path, SHAPES, FLOW_SHAPES, plan)
    assert json.loads((tmp_path / "report.json").read_text()) == figures
    wanted = {"understanding", "generation.overall", "generation.position", "generation.strict", "new.understanding"}
    assert wanted | {"new.generation", "old_drop", "minutes"} <= set(figures)
    assert all(np.isfinite(value) for value in figures.values())
    assert (tmp_path / "index.html").stat().st_size > 100_000
    losses = [json.loads(line) for line in (tmp_path / "run" / "stage_1" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in losses if "loss" in line] == list(range(1, 41))
