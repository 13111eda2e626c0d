"""Scores conversations in which the assistant draws, looks at its drawing and changes it.

A user looks at each drawing before the next message, so later messages depend on what the model drew.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from examples.shapes.dataset.drawings import Drawing, sample_drawing, sample_follow_up
from examples.shapes.dataset.edit_scoring import EditVerdict, check_edit, scene_in
from examples.shapes.dataset.edits import EditKind, Limits, SceneEdit, edit_scene
from examples.shapes.dataset.questions import Question
from examples.shapes.dataset.render import render
from examples.shapes.dataset.scene import Category, Scene, sample_scene
from examples.shapes.dataset.scoring import Scores, check_image, is_correct, mean_scores
from examples.shapes.dataset.vocabulary import DEFAULT_VOCABULARY, Split, Vocabulary

_TRIES = 300

Picture = UInt8[np.ndarray, "H W 3"]


class Plot(enum.StrEnum):
    """What the user asks for after the drawing."""

    EDIT = "edit"
    QUESTION = "question"
    EDIT_QUESTION = "edit_question"


@dataclass(frozen=True)
class DrawingTask:
    """A conversation to evaluate.

    Attributes:
      drawing: The first request.
      plot: What the user asks for next.
      seed: Seed of the later messages, which also depend on the drawings.
    """

    drawing: Drawing
    plot: Plot
    limits: Limits
    seed: tuple[int, ...]


class Assistant(Protocol):
    """One conversation with a model, or a stand-in for it."""

    def reply(self, task: DrawingTask, text: str, follow_up: SceneEdit | Question | None) -> Picture | str:
        """Returns the picture or the text with which the assistant replies to a message.

        Args:
          task: The conversation.
          text: The message.
          follow_up: The edit or question of the message; None for the first one.
        """
        ...


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
      text: Message of the user.
      reply: Reply of the assistant.
      reason: Describes what is wrong; empty for a correct reply.
    """

    text: str
    reply: Picture | str
    reason: str
    edit: EditVerdict | None = None


@dataclass(frozen=True)
class Transcript:
    """A conversation. It ends with the first wrong reply."""

    task: DrawingTask
    turns: tuple[Turn, ...]

    @property
    def correct(self) -> bool:
        """Whether all replies are correct."""
        return not self.turns[-1].reason


def sample_drawing_tasks(
    split: Split, per_plot: int, seed: int = 0, vocabulary: Vocabulary = DEFAULT_VOCABULARY
) -> list[DrawingTask]:
    """Returns conversations for an evaluation, the same number of each plot.

    In TEST the drawing of a conversation that only asks a question is held out, and so is the result of each edit, if
    the drawing allows one. Other drawings are of any kind.

    Raises:
      JanusError: The vocabulary allows no such scenes.
    """
    tasks = []
    for number, plot in enumerate(Plot):
        for index in range(per_plot):
            limits = Limits(vocabulary, split)
            source = limits if plot is Plot.QUESTION or split is Split.TRAIN else replace(limits, split=None)
            rng = np.random.default_rng((seed, number, index))
            category = tuple(Category)[index % len(Category)]
            drawing = sample_drawing(rng, source, category)
            limits = replace(limits, names_colors=drawing.names_colors)
            tasks.append(DrawingTask(drawing, plot, limits, (seed, number, index, 1)))
    return tasks


def converse(task: DrawingTask, assistant: Assistant) -> Transcript:
    """Returns the conversation of a task with an assistant."""
    return Transcript(task, tuple(_turns(task, assistant)))


def _turns(task: DrawingTask, assistant: Assistant) -> Iterator[Turn]:
    assert task.drawing.prompt is not None, "drawings of evaluations have requirements"
    rng = np.random.default_rng(task.seed)
    text = task.drawing.text
    reply = assistant.reply(task, text, None)
    if isinstance(reply, str):
        yield Turn(text, reply, "no picture")
        return
    scene, reason = scene_in(reply), check_image(task.drawing.prompt, reply).reason
    yield Turn(text, reply, reason or ("" if scene else "no scene of the dataset"))
    if reason or scene is None:
        return
    if task.plot is not Plot.QUESTION:
        before = reply
        edit = _find_edit(rng, scene, task.limits)
        reply = assistant.reply(task, edit.request.text, edit)
        if isinstance(reply, str):
            yield Turn(edit.request.text, reply, "no picture")
            return
        verdict = check_edit(edit.request, scene, before, reply)
        scene = scene_in(reply)
        reason = verdict.reason or ("" if scene or task.plot is Plot.EDIT else "no scene of the dataset")
        yield Turn(edit.request.text, reply, reason, verdict)
        if reason or scene is None:
            return
    if task.plot is not Plot.EDIT:
        question = _find_question(rng, scene, task.limits)
        reply = assistant.reply(task, question.text, question)
        is_right = isinstance(reply, str) and is_correct(question, reply)
        yield Turn(question.text, reply, "" if is_right else f"expected {question.answer}")


def score_transcripts(transcripts: Sequence[Transcript]) -> Scores:
    """Returns the fraction of correct conversations by plot."""
    return mean_scores([one.task.plot.value for one in transcripts], [one.correct for one in transcripts])


def chance_of_drawings(tasks: Sequence[DrawingTask], seed: int = 0, size: int = 48) -> Scores:
    """Returns the scores of random drawings of the right category, random edits of the right kind, and guesses."""
    rng = np.random.default_rng(seed)
    return score_transcripts([converse(task, _Guesser(rng, size)) for task in tasks])


@dataclass
class _Guesser:
    rng: np.random.Generator
    size: int

    def reply(self, task: DrawingTask, text: str, follow_up: SceneEdit | Question | None) -> Picture | str:
        anything = replace(task.limits, split=None)
        if isinstance(follow_up, Question):
            return str(self.rng.choice(follow_up.choices))
        if follow_up is None:
            assert task.drawing.prompt is not None
            category = task.drawing.prompt.category
            return render(sample_scene(self.rng, anything.vocabulary, None, category), self.size)
        kind = follow_up.request.kind
        tries = (edit_scene(self.rng, follow_up.source, kind, anything) for _ in range(_TRIES))
        return render(next((one.target for one in tries if one), follow_up.source), self.size)


def _find_edit(rng: np.random.Generator, scene: Scene, limits: Limits) -> SceneEdit:
    for one in (limits, replace(limits, split=None)):
        for _ in range(_TRIES):
            # The kind is sampled first, so that kinds that often fail are not rare.
            kind = tuple(EditKind)[rng.integers(len(EditKind))]
            tries = (edit_scene(rng, scene, kind, one) for _ in range(20))
            if found := next((edit for edit in tries if edit), None):
                return found
    raise AssertionError("the background of every scene can be changed")


def _find_question(rng: np.random.Generator, scene: Scene, limits: Limits) -> Question:
    while True:
        found = sample_follow_up(rng, scene, limits, is_edit=False)
        if isinstance(found, Question):
            return found
