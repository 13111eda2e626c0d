"""Questions about scenes with one right answer of one word, and conversations made of them."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from examples.shapes.dataset.captions import counted, description, plural, related, shuffled
from examples.shapes.dataset.scene import COLUMNS, ROWS, Category, Relation, Scene, popularity, relation, sample_scene
from examples.shapes.dataset.vocabulary import DEFAULT, HELD_OUT_ALONE, NUMBERS, Split, Vocabulary
from janus_jax.errors import JanusError
from janus_jax.processing import Message
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

MOST_TURNS = 8

_DESCRIBE = ("Describe the picture.", "What is in the picture?")
_DESCRIBED = 0.25
_MADE_FOR_TOPIC = 0.5
_TRIES = 10_000


class Topic(enum.StrEnum):
    """What a question is after."""

    COLOUR = "colour"
    SHAPE = "shape"
    COUNT = "count"
    POSITION = "position"
    EXISTENCE = "existence"


class Negatives(enum.StrEnum):
    """POPE's settings (arXiv 2305.10355, §4.1): which absent thing is asked for where the answer is no.

    Adversarial ones share their shape with one thing of the picture and their colour with another, where there are
    such.
    """

    RANDOM = "random"
    POPULAR = "popular"
    ADVERSARIAL = "adversarial"


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
      scene: what the picture shows.
      topic: what it is after.
      text: the question.
      answer: one word, lower case; right if met exactly.
      choices: the words that who sees no picture may guess among.
      named: shapes and colours that question or answer name.
      negatives: of questions of existence (those answered yes are asked beside each setting's no).
    """

    scene: Scene
    topic: Topic
    text: str
    answer: str
    choices: tuple[str, ...]
    named: frozenset[str]
    negatives: Negatives | None = None


class Asked(enum.StrEnum):
    """What conversations ask for (docs/shapes.md has what each is good for).

    Attributes:
      EVERYTHING: all topics.
      PLACES: rows and columns of things: no other question makes a model look at one thing among others.
      SIDES: what lies beside what, also among three things and four: there pairs meet that never are alone in TRAIN.
    """

    EVERYTHING = "everything"
    PLACES = "places"
    SIDES = "sides"


# By these shares of turns and scenes no topic and no number is rare.
_TOPICS = (*[*Topic] * 2, *[Topic.POSITION] * 4)
_SCENES = (None, None, None, Category.COUNTING, Category.COUNTING, *[Category.POSITION] * 2, Category.COLOR_ATTR)
_CONVERSED: dict[Asked, Sequence[Category | None]] = {
    Asked.EVERYTHING: _SCENES,
    Asked.PLACES: (None, None, None, *[Category.COLOR_ATTR] * 2, *[Category.POSITION] * 3),
    Asked.SIDES: (None,),
}


def ask(
    scene: Scene,
    topic: Topic,
    rng: np.random.Generator,
    vocabulary: Vocabulary = DEFAULT,
    split: Split = Split.TRAIN,
    about: frozenset[str] = frozenset(),
) -> Question | None:
    """A question about a scene, or None where it gives no reason for one; of existence, as often yes as no.

    Args:
      scene: what to ask about.
      topic: what to ask for.
      rng: draws among the questions.
      vocabulary: what may be asked for.
      split: the scene's.
      about: shapes and colours of which the question or its answer must name one; empty for any.
    """
    if topic is not Topic.EXISTENCE:
        return _one_of(_ABOUT_WHAT_IS_THERE[topic](scene, vocabulary), rng, about)
    way = _Way.numbered(int(rng.integers(_Way.COUNT)))
    # No is an answer only where yes could have been one, or it would be the likelier.
    if not _existence(scene, vocabulary, split, dataclasses.replace(way, there=True), about):
        return None
    return _one_of(_existence(scene, vocabulary, split, way, about), rng, about)


def questions(
    split: Split,
    per_topic: int,
    seed: int = 0,
    vocabulary: Vocabulary = DEFAULT,
    about: frozenset[str] = frozenset(),
) -> list[Question]:
    """Questions for an evaluation, as many of each topic.

    Those of existence are balanced: POPE's settings take turns, and of each one is answered yes and one no.

    Raises:
      JanusError: the vocabulary holds nothing to ask.
    """
    return [
        _sample(np.random.default_rng((seed, number, index)), topic, index, split, vocabulary, about)
        for number, topic in enumerate(Topic)
        for index in range(per_topic)
    ]


def conversation(
    rng: np.random.Generator,
    vocabulary: Vocabulary = DEFAULT,
    split: Split = Split.TRAIN,
    about: frozenset[str] = frozenset(),
    categories: Sequence[Category | None] = (),
    asked: Asked = Asked.EVERYTHING,
) -> tuple[Scene, tuple[Message, ...]]:
    """A scene, and a conversation of one to eight questions about it; the picture's place is in the first turn.

    Args:
      categories: what the scene is made for, each as often; empty for the shares that leave no topic rare.
      asked: for what.

    Raises:
      JanusError: the vocabulary holds nothing to ask.
    """
    for _ in range(_TRIES):
        scene = _scene(rng, vocabulary, split, about, categories or _CONVERSED[asked])
        turns = _turns(scene, rng, vocabulary, split, about, asked)
        if turns:
            pictured = [(f"{IMAGE_PLACEHOLDER}\n{turns[0][0]}", turns[0][1]), *turns[1:]]
            return scene, tuple(
                {"role": role, "content": content}
                for turn in pictured
                for role, content in zip(("user", "assistant"), turn, strict=True)
            )
    raise _nothing_to_ask(split, vocabulary)


def _turns(
    scene: Scene,
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    split: Split,
    about: frozenset[str],
    asked: Asked,
) -> list[tuple[str, str]]:
    """Questions and answers, none twice."""
    turns: dict[str, str] = {}
    count = 1 + rng.integers(MOST_TURNS)
    # Scenes may be about new words without every question being so; what is to be measured is about nothing else.
    named = about if split is Split.TEST else frozenset[str]()
    if asked is not Asked.EVERYTHING:
        found = _lines(scene, by_colour=True) if asked is Asked.PLACES else _related(scene, vocabulary)
        found = [question for question in found if not named or question.named & named]
        return [(question.text, question.answer) for question in shuffled(found, rng)[:count]]
    for topic in shuffled(_TOPICS, rng):
        if len(turns) == count:
            break
        if question := ask(scene, topic, rng, vocabulary, split, named):
            turns.setdefault(question.text, question.answer)
    if turns and rng.random() < _DESCRIBED:
        turns[_DESCRIBE[rng.integers(len(_DESCRIBE))]] = description(scene)
    return list(turns.items())


def _scene(
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    split: Split,
    about: frozenset[str],
    categories: Sequence[Category | None] = _SCENES,
) -> Scene:
    """A mixture, or a scene in which there is something to count, to place or to tell apart."""
    return sample_scene(rng, vocabulary, split, categories[int(rng.integers(len(categories)))], about)


def _sample(
    rng: np.random.Generator,
    topic: Topic,
    index: int,
    split: Split,
    vocabulary: Vocabulary,
    about: frozenset[str],
) -> Question:
    for _ in range(_TRIES):
        if topic is Topic.EXISTENCE:
            way = _Way.numbered(index)
            # What is not there can be asked of any picture.
            scene = _scene(rng, vocabulary, split, about if way.there else frozenset())
            found = _existence(scene, vocabulary, split, way, about)
        else:
            category = {Topic.COUNT: Category.COUNTING, Topic.POSITION: Category.POSITION}.get(topic)
            if category and rng.random() < _MADE_FOR_TOPIC:
                scene = sample_scene(rng, vocabulary, split, category, about)
            else:
                scene = _scene(rng, vocabulary, split, about)
            found = _ABOUT_WHAT_IS_THERE[topic](scene, vocabulary)
        if question := _one_of(found, rng, about):
            return question
    raise _nothing_to_ask(split, vocabulary)


def _one_of(found: Sequence[Question], rng: np.random.Generator, about: frozenset[str]) -> Question | None:
    """First how it is asked or how many it is, then which: otherwise the commonest would drown the others."""
    groups: dict[tuple[int, str], list[Question]] = {}
    for question in found:
        if not about or question.named & about:
            number = question.answer if question.topic is Topic.COUNT else ""
            groups.setdefault((len(question.choices), number), []).append(question)
    if not groups:
        return None
    group = list(groups.values())[rng.integers(len(groups))]
    return group[rng.integers(len(group))]


def _nothing_to_ask(split: Split, vocabulary: Vocabulary) -> JanusError:
    return JanusError(
        f"There is nothing to ask in {split} about {', '.join(vocabulary.shapes)} in {', '.join(vocabulary.colours)}; "
        f"give the vocabulary more shapes and colours."
    )


def _colours(scene: Scene, vocabulary: Vocabulary) -> list[Question]:
    return [
        Question(
            scene,
            Topic.COLOUR,
            f"What color is the {thing.shape}?",
            thing.colour,
            vocabulary.colours,
            frozenset({thing.shape, thing.colour}),
        )
        for thing in scene.things
        if scene.count(thing.shape) == 1
    ]


def _shapes(scene: Scene, vocabulary: Vocabulary) -> list[Question]:
    return [
        Question(
            scene,
            Topic.SHAPE,
            f"What shape is the {thing.colour} object?",
            thing.shape,
            vocabulary.shapes,
            frozenset({thing.shape, thing.colour}),
        )
        for thing in scene.things
        if scene.count(colour=thing.colour) == 1
    ]


def _counts(scene: Scene, vocabulary: Vocabulary) -> list[Question]:
    numbers = [
        *((plural(shape), scene.count(shape), frozenset({shape})) for shape in sorted(scene.shapes)),
        *((f"{colour} objects", scene.count(colour=colour), frozenset({colour})) for colour in sorted(scene.colours)),
        ("objects", len(scene.things), frozenset[str]()),
    ]
    return [
        Question(scene, Topic.COUNT, f"How many {what} are there?", NUMBERS[count], tuple(NUMBERS.values()), named)
        for what, count, named in numbers
    ]


def _positions(scene: Scene, vocabulary: Vocabulary) -> list[Question]:
    return [*_lines(scene), *_related(scene, vocabulary)]


def _lines(scene: Scene, by_colour: bool = False) -> list[Question]:
    told = [(thing, thing.shape, thing.shape) for thing in scene.things if scene.count(thing.shape) == 1]
    if by_colour:
        alone = [thing for thing in scene.things if scene.count(colour=thing.colour) == 1]
        told += [(thing, f"{thing.colour} object", thing.colour) for thing in alone]
    return [
        Question(scene, Topic.POSITION, f"In which {line} is the {what}?", name, names, frozenset({word}))
        for thing, what, word in told
        for line, name, names in (("row", thing.row, ROWS), ("column", thing.column, COLUMNS))
    ]


def _related(scene: Scene, vocabulary: Vocabulary) -> list[Question]:
    found = []
    for one, other in related(scene):
        where = relation(one, other)
        assert where, "they are related"
        axis = next(axis for axis in _AXES if where in axis)
        named = frozenset({one.shape, other.shape})

        def question(text: str, answer: str, choices: Sequence[str], named: frozenset[str] = named) -> Question:
            return Question(scene, Topic.POSITION, text, answer, tuple(choices), named)

        found.append(question(f"Where is the {one.shape}, seen from the {other.shape}?", where.value, tuple(Relation)))
        found.append(
            question(f"Is the {one.shape} {axis[0]} or {axis[1].phrase} the {other.shape}?", where.value, axis)
        )
        if not any(relation(third, other) is where for third in scene.things if third not in (one, other)):
            found.append(question(f"What shape is {where.phrase} the {other.shape}?", one.shape, vocabulary.shapes))
    return found


_AXES = ((Relation.LEFT, Relation.RIGHT), (Relation.ABOVE, Relation.BELOW))


@dataclass(frozen=True)
class _Way:
    """Of asking whether something is there: the answer, how an absent thing is chosen, whether its colour is named."""

    there: bool
    negatives: Negatives
    coloured: bool

    COUNT: ClassVar[int] = 4 * len(Negatives)

    @classmethod
    def numbered(cls, number: int) -> Self:
        """All of them in turn."""
        turn = number // 2
        return cls(number % 2 == 0, tuple(Negatives)[turn % len(Negatives)], turn // len(Negatives) % 2 == 0)


def _existence(scene: Scene, vocabulary: Vocabulary, split: Split, way: _Way, about: frozenset[str]) -> list[Question]:
    present = {(thing.shape, thing.colour if way.coloured else None) for thing in scene.things}
    kinds = [
        (shape, colour)
        for shape in vocabulary.shapes
        for colour in (vocabulary.colours if way.coloured else (None,))
        if ((shape, colour) in present) == way.there
        and (not about or {shape, colour} & about)
        and _could_be(shape, colour, scene, split)
    ]
    if not way.there:
        kinds = _narrowed(kinds, scene, vocabulary, way.negatives)
    return [
        Question(
            scene,
            Topic.EXISTENCE,
            f"Is there {counted(1, f'{colour} {shape}' if colour else shape)}?",
            "yes" if way.there else "no",
            ("yes", "no"),
            frozenset(filter(None, (shape, colour))),
            way.negatives,
        )
        for shape, colour in kinds
    ]


def _could_be(shape: str, colour: str | None, scene: Scene, split: Split) -> bool:
    """Whether a picture of its split with as many things may show this one."""
    return split is Split.TEST or len(scene.things) > 1 or (shape, colour) not in HELD_OUT_ALONE


def _narrowed(
    kinds: list[tuple[str, str | None]], scene: Scene, vocabulary: Vocabulary, negatives: Negatives
) -> list[tuple[str, str | None]]:
    """Of absent kinds, those that a setting asks for."""

    def often(kind: tuple[str, str | None]) -> float:
        return popularity(vocabulary, *kind)

    def near(kind: tuple[str, str | None]) -> float:
        return (kind[0] in scene.shapes) + (kind[1] in scene.colours)

    match negatives:
        case Negatives.POPULAR:
            return _most(kinds, often)
        case Negatives.ADVERSARIAL:
            return _most(kinds, near)
        case Negatives.RANDOM:
            return kinds


def _most(
    kinds: list[tuple[str, str | None]], value: Callable[[tuple[str, str | None]], float]
) -> list[tuple[str, str | None]]:
    return [kind for kind in kinds if value(kind) == max(map(value, kinds))]


_ABOUT_WHAT_IS_THERE: dict[Topic, Callable[[Scene, Vocabulary], list[Question]]] = {
    Topic.COLOUR: _colours,
    Topic.SHAPE: _shapes,
    Topic.COUNT: _counts,
    Topic.POSITION: _positions,
}
