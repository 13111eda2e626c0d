"""Scenes in words: captions, descriptions and plain texts."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from examples.shapes.dataset.scene import Category, Relation, Scene, Thing, relation, sample_scene
from examples.shapes.dataset.vocabulary import NUMBERS, Split, Vocabulary

T = TypeVar("T")

PHOTO = "a photo of "
"""How GenEval's prompts begin."""

_BEGINNINGS = (PHOTO, PHOTO, "a picture of ", "an image of ", "")
_ADDED_SENTENCE = 0.4

_FACTS = {
    "circle": ("A circle is round.", "A circle has no corners."),
    "square": ("A square has four corners.", "All four sides of a square are equally long."),
    "triangle": ("A triangle has three corners.", "A triangle has three sides."),
    "star": ("A star has five points.",),
    "cross": ("A cross has four arms.",),
    "heart": ("A heart has one point, at its foot.",),
    "ring": ("A ring is round and has a hole.",),
    "moon": ("A moon has two points and is bent.",),
}


def plural(shape: str) -> str:
    """The word for several of a shape."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def counted(count: int, words: str) -> str:
    """`a red star`, `two red stars`: `words` ends with the shape."""
    if count == 1:
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    return f"{NUMBERS[count]} {plural(words)}"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def request(things: Sequence[Thing], category: Category) -> str:
    """What a prompt of a category asks for, of these things in this order, without how it begins."""
    first, last = things[0], things[-1]
    match category:
        case Category.SINGLE_OBJECT:
            return counted(1, first.shape)
        case Category.COUNTING:
            return counted(len(things), first.shape)
        case Category.COLORS:
            return counted(1, _coloured(first))
        case Category.TWO_OBJECT:
            return f"{counted(1, first.shape)} and {counted(1, last.shape)}"
        case Category.COLOR_ATTR:
            return f"{counted(1, _coloured(first))} and {counted(1, _coloured(last))}"
        case Category.POSITION:
            return f"{counted(1, first.shape)} {_relation(first, last).phrase} {counted(1, last.shape)}"


def caption(scene: Scene, rng: np.random.Generator, category: Category | None = None) -> str:
    """One of the many captions of a scene: its first sentence asks for what the category does, or tells all.

    Args:
      scene: what is told.
      rng: draws the phrasing.
      category: that the scene was made for; None to name every thing.
    """
    beginning = _BEGINNINGS[rng.integers(len(_BEGINNINGS))]
    further = [f"The background is {scene.background.texture}.", *_relations(scene)]
    if category is None and rng.random() < 0.5:
        told = description(scene)
    else:
        # What is named first comes first in reading, where no relation says it: so a prompt tells which to draw first.
        things = shuffled(scene.things, rng) if category is Category.POSITION else scene.things
        told = request(things, category) if category else description(scene, sizes=False)
        further += [f"The {thing.shape} is {thing.size}." for thing in scene.things if scene.count(thing.shape) == 1]
    if rng.random() >= _ADDED_SENTENCE:
        return beginning + told
    return f"{beginning}{told}. {further[rng.integers(len(further))]}"


def description(scene: Scene, sizes: bool = True) -> str:
    """All things, those of one shape and colour as a number, in the order of reading; sizes where they agree."""
    kinds: dict[str, list[str]] = {}
    for thing in scene.things:
        kinds.setdefault(_coloured(thing), []).append(thing.size)
    return listed(
        [
            counted(len(found), f"{found[0]} {kind}" if sizes and len(set(found)) == 1 else kind)
            for kind, found in kinds.items()
        ]
    )


def inventory(scene: Scene) -> str:
    """All that a picture shows, in few words: every thing with size, colour, shape and place, and the background."""
    things = [f"{thing.size} {_coloured(thing)} {thing.row} {thing.column}" for thing in scene.things]
    return f"{', '.join(things)} {scene.background.texture}"


def document(rng: np.random.Generator, vocabulary: Vocabulary, split: Split, about: frozenset[str]) -> str:
    """A short plain text about a scene of its split, and about shapes."""
    scene = sample_scene(rng, vocabulary, split, about=about)
    first = description(scene)
    verb = "is" if first.startswith(("a ", "an ")) else "are"
    sentences = [f"There {verb} {first}.", *shuffled(_relations(scene), rng)[:2]]
    facts = [fact for shape in sorted(scene.shapes) for fact in _FACTS[shape]]
    facts += [f"If one thing is {one.phrase} another, the other is {one.opposite.phrase} it." for one in Relation]
    facts += [f"{NUMBERS[n + 1].capitalize()} is one more than {NUMBERS[n]}." for n in NUMBERS if n + 1 in NUMBERS]
    sentences += shuffled(facts, rng)[: rng.integers(1, 3)]
    return " ".join(sentences)


def shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    """The same in another order."""
    return [items[i] for i in rng.permutation(len(items))]


def related(scene: Scene) -> list[tuple[Thing, Thing]]:
    """All ordered pairs of things that their shapes name without doubt and of which one is to a side of the other."""
    named = [thing for thing in scene.things if scene.count(thing.shape) == 1]
    return [(one, other) for one in named for other in named if one is not other and relation(one, other)]


def _relations(scene: Scene) -> list[str]:
    return [f"The {one.shape} is {_relation(one, other).phrase} the {other.shape}." for one, other in related(scene)]


def _relation(one: Thing, other: Thing) -> Relation:
    found = relation(one, other)
    assert found is not None, "a scene for a position has one"
    return found


def _coloured(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"
