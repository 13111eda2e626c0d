"""Conversations in which the assistant draws, and their scores."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from examples.shapes.dataset import (
    Plot,
    Question,
    SceneEdit,
    ShapesDataset,
    Split,
    chance_of_drawings,
    converse,
    detect,
    render,
    sample_drawing_tasks,
    score_transcripts,
)
from examples.shapes.dataset.scene import held_out
from janus_jax.processing import Task
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER


class Painter:
    """Draws, edits and answers correctly, except in the turns `wrong`."""

    def __init__(self, *wrong):
        self.wrong = wrong
        self.turn = 0
        self.asked = []

    def reply(self, task, text, follow_up):
        self.turn += 1
        self.asked.append(follow_up)
        is_wrong = self.turn - 1 in self.wrong
        if isinstance(follow_up, Question):
            return "seven" if is_wrong else follow_up.answer
        scene = follow_up.target if follow_up else task.drawing.scene
        return render(replace(scene, objects=()) if is_wrong else scene)


def kinds(file):
    return [(obj.shape, obj.color) for obj in detect(np.asarray(Image.open(io.BytesIO(file))))]


def test_records_start_with_a_drawing_and_go_on():
    lengths, texts = set(), []
    for record in ShapesDataset().records(Task.INTERLEAVED, 60):
        contents = [message["content"] for message in record.messages]
        assert contents[1] == IMAGE_PLACEHOLDER
        assert sum(content == IMAGE_PLACEHOLDER for content in contents) == len(record.images)
        assert record.tokenized_images == list(range(len(record.images)))
        assert not any(held_out(kinds(file)) for file in record.images)
        lengths.add((len(contents) // 2, len(record.images)))
        texts += contents[2::2]
    assert lengths == {(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)}
    assert any(" it " in f"{text} " for text in texts)
    assert any(text.endswith("?") for text in texts)


def test_records_of_test_are_held_out():
    for record in ShapesDataset(Split.TEST).records(Task.INTERLEAVED, 30):
        assert all(held_out(kinds(file)) for file in record.images)


@pytest.mark.parametrize("split", Split)
def test_a_perfect_assistant_scores_one(split):
    tasks = sample_drawing_tasks(split, 6)
    transcripts = [converse(task, Painter()) for task in tasks]
    assert score_transcripts(transcripts).overall == 1
    assert {len(one.turns) for one in transcripts if one.task.plot is Plot.EDIT_QUESTION} == {3}
    assert chance_of_drawings(tasks).overall < 0.5


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_conversation_ends_with_the_first_wrong_reply(wrong):
    task = sample_drawing_tasks(Split.TEST, 1)[-1]
    transcript = converse(task, Painter(wrong))
    assert len(transcript.turns) == wrong + 1
    assert not transcript.correct
    assert transcript.turns[-1].reason


def test_results_of_edits_are_held_out_and_requests_follow_the_drawing():
    results = []
    for task in sample_drawing_tasks(Split.TEST, 12):
        painter = Painter()
        converse(task, painter)
        results += [one for one in painter.asked if isinstance(one, SceneEdit)]
    assert np.mean([bool(held_out([(obj.shape, obj.color) for obj in one.target.objects])) for one in results]) > 0.9
    again = Painter()
    converse(sample_drawing_tasks(Split.TEST, 12)[0], again)
    assert again.asked[1].request == results[0].request
