"""Conversations in which the assistant draws a picture, answers questions about it and changes it."""

from dataclasses import dataclass, replace

import numpy as np

from examples.shapes.dataset.captions import PHOTO, description
from examples.shapes.dataset.edits import EditKind, Limits, SceneEdit, casual, edit_scene
from examples.shapes.dataset.prompts import Prompt, prompt_for
from examples.shapes.dataset.questions import Question, Topic, make_question
from examples.shapes.dataset.scene import Category, Scene, sample_scene
from examples.shapes.dataset.vocabulary import Split
from janus_jax.errors import JanusError
from janus_jax.processing import Message
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

MAX_FOLLOW_UPS = 2

_CATEGORIES = (*Category, Category.COLORS, Category.COLORS, None)
_PHRASES = ("Draw {}.", "Draw {}.", "Paint {}.", f"{PHOTO}{{}}")
_EDIT_PROBABILITY = 0.65
_MAX_TRIES = 1_000


@dataclass(frozen=True)
class Drawing:
    """A request to draw a scene.

    Attributes:
      text: The request in words.
      prompt: Requirements on the drawing. None: the words name every object.
    """

    text: str
    scene: Scene
    prompt: Prompt | None

    @property
    def names_colors(self) -> bool:
        """Whether the words name the colors of all objects, so that later requests may use them."""
        return self.prompt is None or self.prompt.category in (Category.COLORS, Category.COLOR_ATTR)


FollowUp = SceneEdit | Question


def sample_drawing(
    rng: np.random.Generator,
    limits: Limits,
    category: Category | None = None,
    *,
    about: frozenset[str] = frozenset(),
) -> Drawing:
    """Returns a random request to draw a scene of a category. None: a scene of any kind, whose objects are all named.

    Raises:
      JanusError: The vocabulary allows no such scene.
    """
    scene = sample_scene(rng, limits.vocabulary, limits.split, category, about)
    prompt = prompt_for(scene, category, rng) if category else None
    words = prompt.text.removeprefix(PHOTO) if prompt else description(scene, sizes=False)
    text = _PHRASES[rng.integers(len(_PHRASES))].format(words)
    return Drawing(casual(text, rng), scene, prompt)


def sample_follow_up(rng: np.random.Generator, scene: Scene, limits: Limits, *, is_edit: bool) -> FollowUp | None:
    """Returns a random edit of a drawing or question about it, or None if the random choices allow none."""
    if is_edit:
        return edit_scene(rng, scene, tuple(EditKind)[rng.integers(len(EditKind))], limits)
    topic = tuple(Topic)[rng.integers(len(Topic))]
    return make_question(scene, topic, rng, vocabulary=limits.vocabulary, split=limits.split or Split.TEST)


def sample_drawing_conversation(
    rng: np.random.Generator, limits: Limits, *, about: frozenset[str] = frozenset()
) -> tuple[list[Scene], tuple[Message, ...]]:
    """Returns a conversation that starts with a drawing and has one or two more turns.

    Returns:
      The scenes of the assistant's pictures, and the messages. A message with a picture is its placeholder.

    Raises:
      JanusError: The vocabulary allows no such conversation.
    """
    for _ in range(_MAX_TRIES):
        drawing = sample_drawing(rng, limits, _CATEGORIES[rng.integers(len(_CATEGORIES))], about=about)
        turns, scenes = [(drawing.text, IMAGE_PLACEHOLDER)], [drawing.scene]
        named = replace(limits, names_colors=drawing.names_colors)
        count = 1 + int(rng.integers(MAX_FOLLOW_UPS))
        for _ in range(_MAX_TRIES):
            if len(turns) > count:
                break
            follow_up = sample_follow_up(rng, scenes[-1], named, is_edit=rng.random() < _EDIT_PROBABILITY)
            if isinstance(follow_up, SceneEdit):
                turns.append((follow_up.request.text, IMAGE_PLACEHOLDER))
                scenes.append(follow_up.target)
            elif follow_up:
                turns.append((follow_up.text, follow_up.answer))
        if len(turns) > 1:
            return scenes, tuple(
                {"role": role, "content": content}
                for turn in turns
                for role, content in zip(("user", "assistant"), turn, strict=True)
            )
    raise JanusError("No conversation about drawings exists; give the vocabulary more shapes and colors.")
