"""Captions, descriptions and plain texts about scenes."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from examples.shapes.dataset.scene import Category, Relation, Scene, SceneObject, relation, sample_scene
from examples.shapes.dataset.vocabulary import NUMBERS, Split, Vocabulary

T = TypeVar("T")

PHOTO = "a photo of "
"""Prefix of GenEval's prompts."""

_PREFIXES = (PHOTO, PHOTO, "a picture of ", "an image of ", "")
_SECOND_SENTENCE_PROBABILITY = 0.4

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
    """Returns the plural of a shape's name."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def count_phrase(count: int, words: str) -> str:
    """Returns a phrase such as `a red star` or `two red stars`; `words` ends with the shape."""
    if count == 1:
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    return f"{NUMBERS[count]} {plural(words)}"


def join_phrases(phrases: Sequence[str]) -> str:
    """Joins phrases like `a, b and c`."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def prompt_text(objects: Sequence[SceneObject], category: Category) -> str:
    """Returns a prompt of this category, without its prefix, that names these objects in this order."""
    first, last = objects[0], objects[-1]
    match category:
        case Category.SINGLE_OBJECT:
            return count_phrase(1, first.shape)
        case Category.COUNTING:
            return count_phrase(len(objects), first.shape)
        case Category.COLORS:
            return count_phrase(1, _colored(first))
        case Category.TWO_OBJECT:
            return f"{count_phrase(1, first.shape)} and {count_phrase(1, last.shape)}"
        case Category.COLOR_ATTR:
            return f"{count_phrase(1, _colored(first))} and {count_phrase(1, _colored(last))}"
        case Category.POSITION:
            return f"{count_phrase(1, first.shape)} {_relation(first, last).phrase} {count_phrase(1, last.shape)}"


def caption(scene: Scene, rng: np.random.Generator, category: Category | None = None) -> str:
    """Returns a random caption of a scene.

    Args:
      rng: Random generator for the phrasing.
      category: The first sentence is like a prompt of this category. None names every object.
    """
    prefix = _PREFIXES[rng.integers(len(_PREFIXES))]
    details = [f"The background is {scene.background.texture}.", *_relation_sentences(scene)]
    if category is None and rng.random() < 0.5:
        text = description(scene)
    else:
        # Except in captions about a relation, objects are named in reading order, which is the order in which a model
        # generates them.
        objects = shuffled(scene.objects, rng) if category is Category.POSITION else scene.objects
        text = prompt_text(objects, category) if category else description(scene, sizes=False)
        details += [f"The {obj.shape} is {obj.size}." for obj in scene.objects if scene.count(obj.shape) == 1]
    if rng.random() >= _SECOND_SENTENCE_PROBABILITY:
        return prefix + text
    return f"{prefix}{text}. {details[rng.integers(len(details))]}"


def description(scene: Scene, sizes: bool = True) -> str:
    """Describes all objects in reading order.

    Objects of equal shape and color are counted together. Their size is stated if `sizes` and if it is the same.
    """
    kinds: dict[str, list[str]] = {}
    for obj in scene.objects:
        kinds.setdefault(_colored(obj), []).append(obj.size)
    return join_phrases(
        [
            count_phrase(len(found), f"{found[0]} {kind}" if sizes and len(set(found)) == 1 else kind)
            for kind, found in kinds.items()
        ]
    )


def inventory(scene: Scene) -> str:
    """Lists size, color, shape and grid position of every object, and the background."""
    objects = [f"{obj.size} {_colored(obj)} {obj.row} {obj.column}" for obj in scene.objects]
    return f"{', '.join(objects)} {scene.background.texture}"


def document(rng: np.random.Generator, vocabulary: Vocabulary, split: Split, about: frozenset[str]) -> str:
    """Returns a random short text about a scene of this split and about shapes in general."""
    scene = sample_scene(rng, vocabulary, split, about=about)
    first = description(scene)
    verb = "is" if first.startswith(("a ", "an ")) else "are"
    sentences = [f"There {verb} {first}.", *shuffled(_relation_sentences(scene), rng)[:2]]
    facts = [fact for shape in sorted(scene.shapes) for fact in _FACTS[shape]]
    facts += [f"If one thing is {one.phrase} another, the other is {one.opposite.phrase} it." for one in Relation]
    facts += [f"{NUMBERS[n + 1].capitalize()} is one more than {NUMBERS[n]}." for n in NUMBERS if n + 1 in NUMBERS]
    sentences += shuffled(facts, rng)[: rng.integers(1, 3)]
    return " ".join(sentences)


def shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    """Returns the items in random order."""
    return [items[i] for i in rng.permutation(len(items))]


def related_pairs(scene: Scene) -> list[tuple[SceneObject, SceneObject]]:
    """Returns all ordered pairs of objects that have a relation and whose shapes occur once."""
    unique = [obj for obj in scene.objects if scene.count(obj.shape) == 1]
    return [(one, other) for one in unique for other in unique if one is not other and relation(one, other)]


def _relation_sentences(scene: Scene) -> list[str]:
    return [
        f"The {one.shape} is {_relation(one, other).phrase} the {other.shape}." for one, other in related_pairs(scene)
    ]


def _relation(one: SceneObject, other: SceneObject) -> Relation:
    found = relation(one, other)
    assert found is not None, "scenes for POSITION have a relation"
    return found


def _colored(obj: SceneObject) -> str:
    return f"{obj.color} {obj.shape}"
