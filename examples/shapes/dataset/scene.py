"""Scenes: the objects and background of an image, before it is rendered."""

import enum
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.shapes.dataset.vocabulary import (
    ALL_COLOURS,
    ALL_SHAPES,
    DEFAULT_VOCABULARY,
    HELD_OUT_COUNTS,
    HELD_OUT_SHAPE_PAIRS,
    HELD_OUT_SINGLES,
    MAX_OBJECTS,
    Kind,
    Split,
    Vocabulary,
    is_held_out_pair,
)
from janus_jax.errors import JanusError

SIZES = {"small": 0.24, "large": 0.31}
"""Diameters, as a fraction of the image side."""

TEXTURES = ("plain", "shaded", "striped", "dotted")
TINTS = ("paper", "mist", "sand", "sage", "lilac", "stone")

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")

_LINES = (1 / 6, 1 / 2, 5 / 6)
_GRID = tuple((x, y) for y in _LINES for x in _LINES)
_MIN_GAP = 0.04
_SIZE_NAMES = tuple(SIZES)
_POPULARITY = 1.5
_REPEAT_PROBABILITY = 0.25
_MAX_TRIES = 10_000


class Category(enum.StrEnum):
    """GenEval's six categories of prompts (arXiv 2310.11513, §3)."""

    SINGLE_OBJECT = "single_object"
    TWO_OBJECT = "two_object"
    COUNTING = "counting"
    COLORS = "colors"
    POSITION = "position"
    COLOR_ATTR = "color_attr"


class Relation(enum.StrEnum):
    """Position of one object relative to another."""

    LEFT = "left"
    RIGHT = "right"
    ABOVE = "above"
    BELOW = "below"

    @property
    def phrase(self) -> str:
        """Words between the names of the two objects in a sentence."""
        return f"{self} of" if self in (Relation.LEFT, Relation.RIGHT) else str(self)

    @property
    def opposite(self) -> "Relation":
        """Relation of the second object to the first."""
        return _OPPOSITES[self]


_OPPOSITES = {
    Relation.LEFT: Relation.RIGHT,
    Relation.RIGHT: Relation.LEFT,
    Relation.ABOVE: Relation.BELOW,
    Relation.BELOW: Relation.ABOVE,
}


def _check(field: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise JanusError(f"The {field} {name!r} does not exist in the shapes dataset; choose among {', '.join(known)}.")


@dataclass(frozen=True)
class SceneObject:
    """One shape in an image.

    Attributes:
      x, y: Center, measured from the upper left corner, as a fraction of the image side.

    Raises:
      JanusError: The dataset has no such shape, colour or size.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float

    def __post_init__(self) -> None:
        _check("shape", self.shape, ALL_SHAPES)
        _check("colour", self.colour, ALL_COLOURS)
        _check("size", self.size, _SIZE_NAMES)

    @property
    def diameter(self) -> float:
        """Diameter, as a fraction of the image side."""
        return SIZES[self.size]

    @property
    def row(self) -> str:
        """Row of the 3x3 grid: top, middle or bottom."""
        return ROWS[int(self.y * len(ROWS))]

    @property
    def column(self) -> str:
        """Column of the 3x3 grid: left, middle or right."""
        return COLUMNS[int(self.x * len(COLUMNS))]


@dataclass(frozen=True)
class Background:
    """Texture and tint behind the objects.

    All tints are pale. A patch at an edge shows an object and the background, so dark tints would double the number of
    codes that an image tokenizer needs for such patches.

    Raises:
      JanusError: The dataset has no such texture or tint.
    """

    texture: str
    tint: str

    def __post_init__(self) -> None:
        _check("texture", self.texture, TEXTURES)
        _check("tint", self.tint, TINTS)


@dataclass(frozen=True)
class Scene:
    """Content of an image. Objects do not overlap and are sorted in reading order."""

    objects: tuple[SceneObject, ...]
    background: Background

    def count(self, shape: str | None = None, colour: str | None = None) -> int:
        """Counts objects of this shape and colour; None matches any."""
        return sum(shape in (None, obj.shape) and colour in (None, obj.colour) for obj in self.objects)

    @property
    def shapes(self) -> set[str]:
        """Shapes of the objects."""
        return {obj.shape for obj in self.objects}

    @property
    def colours(self) -> set[str]:
        """Colours of the objects."""
        return {obj.colour for obj in self.objects}


def relation(first: SceneObject, second: SceneObject) -> Relation | None:
    """Returns the position of `first` relative to `second`; None if the horizontal and vertical offsets are equal."""
    dx, dy = first.x - second.x, first.y - second.y
    if math.isclose(abs(dx), abs(dy), abs_tol=1e-6):
        return None
    if abs(dx) > abs(dy):
        return Relation.LEFT if dx < 0 else Relation.RIGHT
    return Relation.ABOVE if dy < 0 else Relation.BELOW


def sample_scene(
    rng: np.random.Generator,
    vocabulary: Vocabulary = DEFAULT_VOCABULARY,
    split: Split | None = Split.TRAIN,
    category: Category | None = None,
    about: frozenset[str] = frozenset(),
) -> Scene:
    """Samples a scene of one to four objects.

    Args:
      rng: Source of all randomness.
      vocabulary: Shapes and colours that may occur.
      split: TRAIN excludes held-out combinations. TEST requires one of the category. None allows both. (A prompt for a
        single object has no combination to hold out; in TEST its image shows a held-out colour.)
      category: Category of prompts that the scene suits; None samples a mixture of objects.
      about: The scene shows at least one of these shapes and colours, if there are any.

    Raises:
      JanusError: No such scene was found.
    """
    for _ in range(_MAX_TRIES):
        kinds = _sample_kinds(rng, vocabulary, category)
        if _fits(kinds, split, category) and (not about or _is_about(kinds, about)):
            sizes = [_SIZE_NAMES[i] for i in rng.integers(len(SIZES), size=len(kinds))]
            if category is Category.COUNTING:
                sizes = sizes[:1] * len(kinds)
            centers = _sample_centers(rng, sizes, aligned=category is Category.POSITION)
            objects = (SceneObject(*kind, size, *at) for kind, size, at in zip(kinds, sizes, centers, strict=True))
            background = Background(TEXTURES[rng.integers(len(TEXTURES))], TINTS[rng.integers(len(TINTS))])
            return Scene(tuple(sorted(objects, key=lambda obj: (obj.y, obj.x))), background)
    raise JanusError(
        f"No {split or 'matching'} scene for {category or 'a mixture'} exists with {', '.join(vocabulary.shapes)} in "
        f"{', '.join(vocabulary.colours)}{' about ' + ', '.join(sorted(about)) if about else ''}; "
        f"give the vocabulary more shapes and colours."
    )


def _sample_kinds(rng: np.random.Generator, vocabulary: Vocabulary, category: Category | None) -> list[Kind]:
    kinds, cumulative = _kinds(vocabulary)

    def sample(count: int) -> list[Kind]:
        return [kinds[i] for i in np.searchsorted(cumulative, rng.random(count), "right")]

    match category:
        case Category.SINGLE_OBJECT | Category.COLORS:
            return sample(1)
        case Category.COUNTING:
            return sample(1) * int(rng.integers(2, MAX_OBJECTS + 1))
        case None:
            # Some objects repeat an earlier one, so that mixtures also have something to count.
            found = sample(int(rng.integers(1, MAX_OBJECTS + 1)))
            for index in range(1, len(found)):
                if rng.random() < _REPEAT_PROBABILITY:
                    found[index] = found[rng.integers(index)]
            return found
        case _:
            return sample(2)


@functools.lru_cache(maxsize=64)
def _kinds(vocabulary: Vocabulary) -> tuple[list[Kind], np.ndarray]:
    """Returns all kinds and their cumulative probabilities."""
    kinds = [(shape, colour) for shape in vocabulary.shapes for colour in vocabulary.colours]
    weights = np.array([popularity(vocabulary, *kind) for kind in kinds])
    cumulative = np.cumsum(weights / weights.sum())
    cumulative[-1] = 1.0  # Rounding must leave no gap above the last.
    return kinds, cumulative


def popularity(vocabulary: Vocabulary, shape: str, colour: str | None = None) -> float:
    """Returns the frequency of a kind relative to the rarest kind."""
    weight = 1.0
    for names, name in ((vocabulary.shapes, shape), (vocabulary.colours, colour)):
        if name in names[: len(names) // 2]:
            weight *= _POPULARITY
    return weight


def held_out(kinds: Sequence[Kind]) -> set[Category | None]:
    """Returns the categories in which an image with exactly these objects is held out; None means mixtures."""
    shapes = [shape for shape, _ in kinds]
    found: set[Category | None] = set()
    if len(kinds) == 1 and kinds[0] in HELD_OUT_SINGLES:
        found |= {None, Category.SINGLE_OBJECT, Category.COLORS}
    if len(kinds) == 2 and is_held_out_pair(*kinds):
        found |= {None, Category.COLOR_ATTR}
    if len(kinds) == 2 and frozenset(shapes) in HELD_OUT_SHAPE_PAIRS:
        found |= {None, Category.TWO_OBJECT, Category.POSITION}
    if len(set(kinds)) == 1 and (shapes[0], len(shapes)) in HELD_OUT_COUNTS:
        found |= {None, Category.COUNTING}
    return found


def _fits(kinds: Sequence[Kind], split: Split | None, category: Category | None) -> bool:
    shapes, colours = ({kind[axis] for kind in kinds} for axis in range(2))
    if category in (Category.TWO_OBJECT, Category.POSITION, Category.COLOR_ATTR) and len(shapes) < 2:
        return False
    if category is Category.COLOR_ATTR and len(colours) < 2:
        return False
    if split is None:
        return True
    found = held_out(kinds)
    return category in found if split is Split.TEST else not found


def _is_about(kinds: Sequence[Kind], about: frozenset[str]) -> bool:
    return any(not about.isdisjoint(kind) for kind in kinds)


def _sample_centers(rng: np.random.Generator, sizes: Sequence[str], aligned: bool) -> list[tuple[float, float]]:
    """Samples centers on the grid for objects of these sizes; if `aligned`, all in one row or one column."""
    while True:
        centers = [_GRID[i] for i in rng.permutation(len(_GRID))[: len(sizes)]]
        if _are_separate(tuple(centers), tuple(sizes)) and (not aligned or _are_aligned(centers)):
            return centers


@functools.lru_cache(maxsize=1 << 16)
def _are_separate(centers: tuple[tuple[float, float], ...], sizes: tuple[str, ...]) -> bool:
    circles = [(*center, SIZES[size] / 2) for center, size in zip(centers, sizes, strict=True)]
    return all(
        math.dist(first[:2], second[:2]) >= first[2] + second[2] + _MIN_GAP
        for index, first in enumerate(circles)
        for second in circles[:index]
    )


def _are_aligned(centers: Sequence[tuple[float, float]]) -> bool:
    columns, rows = zip(*centers, strict=True)
    return len(set(columns)) == 1 or len(set(rows)) == 1
