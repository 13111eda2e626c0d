"""Questions about scenes with one-word answers, and conversations of several questions."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np

from examples.shapes.dataset.captions import count_phrase, description, plural, related_pairs, shuffled
from examples.shapes.dataset.scene import COLUMNS, ROWS, Category, Relation, Scene, popularity, relation, sample_scene
from examples.shapes.dataset.vocabulary import DEFAULT_VOCABULARY, HELD_OUT_SINGLES, NUMBERS, Split, Vocabulary
from janus_jax.errors import JanusError
from janus_jax.processing import Message
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

MAX_TURNS = 8

_DESCRIBE = ("Describe the picture.", "What is in the picture?")
_DESCRIBE_PROBABILITY = 0.25
_TOPIC_SCENE_PROBABILITY = 0.5
_MAX_TRIES = 10_000


class Topic(enum.StrEnum):
    """Topic of a question."""

    COLOR = "colour"
    SHAPE = "shape"
    COUNT = "count"
    POSITION = "position"
    EXISTENCE = "existence"


class Negatives(enum.StrEnum):
    """How POPE chooses the absent object of a question with the answer no (arXiv 2305.10355, §4.1).

    A popular object is frequent in the dataset. An adversarial object has the shape of one object in the image and the
    color of another, if possible.
    """

    RANDOM = "random"
    POPULAR = "popular"
    ADVERSARIAL = "adversarial"


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
      answer: The correct answer, one word in lower case.
      choices: Possible answers, from which the score of random guesses is computed.
      named: Shapes and colors that occur in the question or its answer.
      negatives: For questions about existence: how the absent object was chosen. Questions with the answer yes have a
        value too, so that yes and no are equally frequent for each value.
    """

    scene: Scene
    topic: Topic
    text: str
    answer: str
    choices: tuple[str, ...]
    named: frozenset[str]
    negatives: Negatives | None = None


class Focus(enum.StrEnum):
    """Topics of a conversation. The README of this example explains why training needs all three.

    Attributes:
      EVERYTHING: All topics.
      POSITIONS: Rows and columns of single objects.
      RELATIONS: Relations between objects, also in scenes of three and four objects. These scenes contain pairs that
        TRAIN never shows alone.
    """

    EVERYTHING = "everything"
    POSITIONS = "positions"
    RELATIONS = "relations"


# Frequencies of topics and scenes, chosen so that no topic and no count is rare.
_TOPICS = (*[*Topic] * 2, *[Topic.POSITION] * 4)
_SCENES = (None, None, None, Category.COUNTING, Category.COUNTING, *[Category.POSITION] * 2, Category.COLOR_ATTR)
_FOCUS_SCENES: dict[Focus, Sequence[Category | None]] = {
    Focus.EVERYTHING: _SCENES,
    Focus.POSITIONS: (None, None, None, *[Category.COLOR_ATTR] * 2, *[Category.POSITION] * 3),
    Focus.RELATIONS: (None,),
}


class _Limits(NamedTuple):
    """Restrictions on scenes and questions."""

    vocabulary: Vocabulary
    split: Split
    about: frozenset[str]


def make_question(
    scene: Scene,
    topic: Topic,
    rng: np.random.Generator,
    *,
    vocabulary: Vocabulary = DEFAULT_VOCABULARY,
    split: Split = Split.TRAIN,
    about: frozenset[str] = frozenset(),
) -> Question | None:
    """Returns a random question about a scene. For questions about existence, yes and no are equally frequent.

    Args:
      rng: Random generator.
      vocabulary: Shapes and colors that may be named.
      split: Split of the scene.
      about: If not empty, the question or its answer names at least one of these shapes and colors.

    Returns:
      The question, or None if the scene allows no question.
    """
    limits = _Limits(vocabulary, split, about)
    if topic is not Topic.EXISTENCE:
        return _sample_one(_QUESTIONS[topic](scene, vocabulary), rng, about)
    variant = _ExistenceVariant.numbered(int(rng.integers(_ExistenceVariant.COUNT)))
    # Without a possible question with the answer yes there is no question, so that no is not the more frequent answer.
    if not _existence(scene, dataclasses.replace(variant, is_present=True), limits):
        return None
    return _sample_one(_existence(scene, variant, limits), rng, about)


def sample_questions(
    split: Split,
    per_topic: int,
    seed: int = 0,
    vocabulary: Vocabulary = DEFAULT_VOCABULARY,
    about: frozenset[str] = frozenset(),
) -> list[Question]:
    """Returns random questions for an evaluation, the same number of each topic.

    Questions about existence have each kind of `Negatives` equally often, and the answers yes and no equally often.

    Args:
      about: If not empty, each question or its answer names at least one of these shapes and colors.

    Raises:
      JanusError: The vocabulary allows no question.
    """
    limits = _Limits(vocabulary, split, about)
    return [
        _sample(np.random.default_rng((seed, number, index)), topic, index, limits)
        for number, topic in enumerate(Topic)
        for index in range(per_topic)
    ]


def sample_conversation(
    rng: np.random.Generator,
    vocabulary: Vocabulary = DEFAULT_VOCABULARY,
    split: Split = Split.TRAIN,
    *,
    about: frozenset[str] = frozenset(),
    categories: Sequence[Category | None] = (),
    focus: Focus = Focus.EVERYTHING,
) -> tuple[Scene, tuple[Message, ...]]:
    """Returns a random scene and a conversation about it with one to eight questions.

    The first question contains the image placeholder.

    Args:
      about: If not empty, the scene shows at least one of these shapes and colors.
      categories: Categories of the scene, equally frequent. If empty, the frequencies depend on the focus.
      focus: Topics of the questions.

    Raises:
      JanusError: The vocabulary allows no question.
    """
    limits = _Limits(vocabulary, split, about)
    for _ in range(_MAX_TRIES):
        scene = _sample_scene(rng, limits, categories or _FOCUS_SCENES[focus])
        turns = _turns(scene, rng, limits, focus)
        if turns:
            with_image = [(f"{IMAGE_PLACEHOLDER}\n{turns[0][0]}", turns[0][1]), *turns[1:]]
            return scene, tuple(
                {"role": role, "content": content}
                for turn in with_image
                for role, content in zip(("user", "assistant"), turn, strict=True)
            )
    raise _no_question(limits)


def _turns(scene: Scene, rng: np.random.Generator, limits: _Limits, focus: Focus) -> list[tuple[str, str]]:
    """Returns random distinct questions with their answers."""
    turns: dict[str, str] = {}
    count = 1 + rng.integers(MAX_TURNS)
    # In TRAIN a question about a scene with new words may name other words; in TEST it names a new word.
    about = limits.about if limits.split is Split.TEST else frozenset[str]()
    if focus is not Focus.EVERYTHING:
        is_position = focus is Focus.POSITIONS
        found = _grid_positions(scene, by_color=True) if is_position else _relations(scene, limits.vocabulary)
        found = [question for question in found if not about or question.named & about]
        return [(question.text, question.answer) for question in shuffled(found, rng)[:count]]
    for topic in shuffled(_TOPICS, rng):
        if len(turns) == count:
            break
        question = make_question(scene, topic, rng, vocabulary=limits.vocabulary, split=limits.split, about=about)
        if question:
            turns.setdefault(question.text, question.answer)
    if turns and rng.random() < _DESCRIBE_PROBABILITY:
        turns[_DESCRIBE[rng.integers(len(_DESCRIBE))]] = description(scene)
    return list(turns.items())


def _sample_scene(rng: np.random.Generator, limits: _Limits, categories: Sequence[Category | None] = _SCENES) -> Scene:
    category = categories[int(rng.integers(len(categories)))]
    return sample_scene(rng, limits.vocabulary, limits.split, category, limits.about)


def _sample(rng: np.random.Generator, topic: Topic, index: int, limits: _Limits) -> Question:
    for _ in range(_MAX_TRIES):
        if topic is Topic.EXISTENCE:
            variant = _ExistenceVariant.numbered(index)
            # A question about an absent object needs no scene with the requested words.
            scene = _sample_scene(rng, limits if variant.is_present else limits._replace(about=frozenset()))
            found = _existence(scene, variant, limits)
        else:
            category = {Topic.COUNT: Category.COUNTING, Topic.POSITION: Category.POSITION}.get(topic)
            if category and rng.random() < _TOPIC_SCENE_PROBABILITY:
                scene = sample_scene(rng, limits.vocabulary, limits.split, category, limits.about)
            else:
                scene = _sample_scene(rng, limits)
            found = _QUESTIONS[topic](scene, limits.vocabulary)
        if question := _sample_one(found, rng, limits.about):
            return question
    raise _no_question(limits)


def _sample_one(found: Sequence[Question], rng: np.random.Generator, about: frozenset[str]) -> Question | None:
    """Returns a random question, or None if none is about the requested words.

    A group of similar questions is sampled first, then a question of the group, so that large groups do not dominate.
    Questions of a group have equally many choices and, if they are about counts, the same answer.
    """
    groups: dict[tuple[int, str], list[Question]] = {}
    for question in found:
        if not about or question.named & about:
            number = question.answer if question.topic is Topic.COUNT else ""
            groups.setdefault((len(question.choices), number), []).append(question)
    if not groups:
        return None
    group = list(groups.values())[rng.integers(len(groups))]
    return group[rng.integers(len(group))]


def _no_question(limits: _Limits) -> JanusError:
    vocabulary = limits.vocabulary
    return JanusError(
        f"No question exists in {limits.split} with {', '.join(vocabulary.shapes)} in {', '.join(vocabulary.colors)}; "
        f"give the vocabulary more shapes and colors."
    )


def _colors(scene: Scene, vocabulary: Vocabulary) -> list[Question]:
    return [
        Question(
            scene,
            Topic.COLOR,
            f"What color is the {obj.shape}?",
            obj.color,
            vocabulary.colors,
            frozenset({obj.shape, obj.color}),
        )
        for obj in scene.objects
        if scene.count(obj.shape) == 1
    ]


def _shapes(scene: Scene, vocabulary: Vocabulary) -> list[Question]:
    return [
        Question(
            scene,
            Topic.SHAPE,
            f"What shape is the {obj.color} object?",
            obj.shape,
            vocabulary.shapes,
            frozenset({obj.shape, obj.color}),
        )
        for obj in scene.objects
        if scene.count(color=obj.color) == 1
    ]


def _counts(scene: Scene, vocabulary: Vocabulary) -> list[Question]:
    counts = [
        *((plural(shape), scene.count(shape), frozenset({shape})) for shape in sorted(scene.shapes)),
        *((f"{color} objects", scene.count(color=color), frozenset({color})) for color in sorted(scene.colors)),
        ("objects", len(scene.objects), frozenset[str]()),
    ]
    return [
        Question(scene, Topic.COUNT, count_text(what), NUMBERS[count], tuple(NUMBERS.values()), named)
        for what, count, named in counts
    ]


def _positions(scene: Scene, vocabulary: Vocabulary) -> list[Question]:
    return [*_grid_positions(scene), *_relations(scene, vocabulary)]


def _grid_positions(scene: Scene, by_color: bool = False) -> list[Question]:
    subjects = [(obj, obj.shape, obj.shape) for obj in scene.objects if scene.count(obj.shape) == 1]
    if by_color:
        unique = [obj for obj in scene.objects if scene.count(color=obj.color) == 1]
        subjects += [(obj, f"{obj.color} object", obj.color) for obj in unique]
    return [
        Question(scene, Topic.POSITION, f"In which {line} is the {what}?", name, names, frozenset({word}))
        for obj, what, word in subjects
        for line, name, names in (("row", obj.row, ROWS), ("column", obj.column, COLUMNS))
    ]


def _relations(scene: Scene, vocabulary: Vocabulary) -> list[Question]:
    found = []
    for one, other in related_pairs(scene):
        where = relation(one, other)
        assert where, "they are related"
        axis = axis_of(where)
        named = frozenset({one.shape, other.shape})

        def question(text: str, answer: str, choices: Sequence[str], named: frozenset[str] = named) -> Question:
            return Question(scene, Topic.POSITION, text, answer, tuple(choices), named)

        found.append(question(f"Where is the {one.shape}, seen from the {other.shape}?", where.value, tuple(Relation)))
        found.append(question(relation_text(one.shape, axis, other.shape), where.value, axis))
        if not any(relation(third, other) is where for third in scene.objects if third not in (one, other)):
            found.append(question(f"What shape is {where.phrase} the {other.shape}?", one.shape, vocabulary.shapes))
    return found


_AXES = ((Relation.LEFT, Relation.RIGHT), (Relation.ABOVE, Relation.BELOW))


def axis_of(where: Relation) -> tuple[Relation, Relation]:
    """Returns a relation and its opposite, in the order of questions."""
    return next(axis for axis in _AXES if where in axis)


def existence_text(shape: str, color: str | None) -> str:
    """Returns the question whether the image shows a shape, or a shape in a color."""
    return f"Is there {count_phrase(1, f'{color} {shape}' if color else shape)}?"


def count_text(plural_words: str) -> str:
    """Returns the question for the number of objects."""
    return f"How many {plural_words} are there?"


def relation_text(shape: str, axis: tuple[Relation, Relation], other: str) -> str:
    """Returns the question for the position of a shape relative to another one, along an axis (`axis_of`)."""
    return f"Is the {shape} {axis[0]} or {axis[1].phrase} the {other}?"


@dataclass(frozen=True)
class _ExistenceVariant:
    """Variant of a question about existence.

    Attributes:
      is_present: Whether the answer is yes.
      negatives: How an absent object is chosen.
      names_color: Whether the question names a color.
    """

    is_present: bool
    negatives: Negatives
    names_color: bool

    COUNT: ClassVar[int] = 4 * len(Negatives)

    @classmethod
    def numbered(cls, number: int) -> Self:
        """Returns variant `number`; consecutive numbers give all variants in turn."""
        turn = number // 2
        return cls(number % 2 == 0, tuple(Negatives)[turn % len(Negatives)], turn // len(Negatives) % 2 == 0)


def _existence(scene: Scene, variant: _ExistenceVariant, limits: _Limits) -> list[Question]:
    vocabulary, about = limits.vocabulary, limits.about
    present = {(obj.shape, obj.color if variant.names_color else None) for obj in scene.objects}
    kinds = [
        (shape, color)
        for shape in vocabulary.shapes
        for color in (vocabulary.colors if variant.names_color else (None,))
        if ((shape, color) in present) == variant.is_present
        and (not about or {shape, color} & about)
        and _is_possible(shape, color, scene, limits.split)
    ]
    if not variant.is_present:
        kinds = _select_negatives(kinds, scene, vocabulary, variant.negatives)
    return [
        Question(
            scene,
            Topic.EXISTENCE,
            existence_text(shape, color),
            "yes" if variant.is_present else "no",
            ("yes", "no"),
            frozenset(filter(None, (shape, color))),
            variant.negatives,
        )
        for shape, color in kinds
    ]


def _is_possible(shape: str, color: str | None, scene: Scene, split: Split) -> bool:
    """Returns whether an image of this split with the same number of objects could show this shape and color."""
    return split is Split.TEST or len(scene.objects) > 1 or (shape, color) not in HELD_OUT_SINGLES


def _select_negatives(
    kinds: list[tuple[str, str | None]], scene: Scene, vocabulary: Vocabulary, negatives: Negatives
) -> list[tuple[str, str | None]]:
    """Returns the absent objects among which the question's is sampled."""
    if negatives is Negatives.RANDOM:
        return kinds
    if negatives is Negatives.POPULAR:
        values = [popularity(vocabulary, *kind) for kind in kinds]
    else:
        values = [(shape in scene.shapes) + (color in scene.colors) for shape, color in kinds]
    return [kind for kind, value in zip(kinds, values, strict=True) if value == max(values)]


_QUESTIONS: dict[Topic, Callable[[Scene, Vocabulary], list[Question]]] = {
    Topic.COLOR: _colors,
    Topic.SHAPE: _shapes,
    Topic.COUNT: _counts,
    Topic.POSITION: _positions,
}
"""Functions that return all questions of a topic about a scene."""
