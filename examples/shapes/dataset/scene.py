"""Scenes: descriptions of the objects and background of an image, from which the image is rendered."""

import enum
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.shapes.dataset.vocabulary import (
    ALL_COLORS,
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
GRID = tuple((x, y) for y in _LINES for x in _LINES)
"""Centers of the cells of the 3x3 grid, in reading order."""

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
        """The words that state this relation between the names of two objects."""
        return f"{self} of" if self in (Relation.LEFT, Relation.RIGHT) else str(self)

    @property
    def opposite(self) -> "Relation":
        """The relation with the two objects exchanged."""
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
      JanusError: The dataset has no such shape, color or size.
    """

    shape: str
    color: str
    size: str
    x: float
    y: float

    def __post_init__(self) -> None:
        _check("shape", self.shape, ALL_SHAPES)
        _check("color", self.color, ALL_COLORS)
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

    All tints are pale. A patch at the edge of an object shows the object and the background, so with dark tints an
    image tokenizer would need twice as many codes for such patches.

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

    def count(self, shape: str | None = None, color: str | None = None) -> int:
        """Returns the number of objects of this shape and color. None matches any."""
        return sum(shape in (None, obj.shape) and color in (None, obj.color) for obj in self.objects)

    @property
    def shapes(self) -> set[str]:
        """Shapes of the objects."""
        return {obj.shape for obj in self.objects}

    @property
    def colors(self) -> set[str]:
        """Colors of the objects."""
        return {obj.color for obj in self.objects}


def relation(first: SceneObject, second: SceneObject) -> Relation | None:
    """Returns the position of `first` relative to `second`, or None if the two offsets between them are equal."""
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
    """Returns a random scene of one to four objects.

    Args:
      rng: Random generator.
      vocabulary: Shapes and colors that may occur.
      split: TRAIN excludes held-out combinations. In TEST the scene is a combination held out for the category. None
        allows all scenes.
      category: Category of prompts for which the scene is suitable. None returns a mixture of objects.
      about: If not empty, the scene shows at least one of these shapes and colors.

    Raises:
      JanusError: No such scene was found.
    """
    for _ in range(_MAX_TRIES):
        kinds = _sample_kinds(rng, vocabulary, category)
        if _fits(kinds, split, category) and (not about or any(not about.isdisjoint(kind) for kind in kinds)):
            sizes = [_SIZE_NAMES[i] for i in rng.integers(len(SIZES), size=len(kinds))]
            if category is Category.COUNTING:
                sizes = sizes[:1] * len(kinds)
            centers = _sample_centers(rng, sizes, aligned=category is Category.POSITION)
            objects = (SceneObject(*kind, size, *at) for kind, size, at in zip(kinds, sizes, centers, strict=True))
            background = Background(TEXTURES[rng.integers(len(TEXTURES))], TINTS[rng.integers(len(TINTS))])
            return Scene(tuple(sorted(objects, key=lambda obj: (obj.y, obj.x))), background)
    raise JanusError(
        f"No {split or 'matching'} scene for {category or 'a mixture'} exists with {', '.join(vocabulary.shapes)} in "
        f"{', '.join(vocabulary.colors)}{' about ' + ', '.join(sorted(about)) if about else ''}; "
        f"give the vocabulary more shapes and colors."
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
            # Some objects equal an earlier one, so that mixtures also have counts above one.
            found = sample(int(rng.integers(1, MAX_OBJECTS + 1)))
            for index in range(1, len(found)):
                if rng.random() < _REPEAT_PROBABILITY:
                    found[index] = found[rng.integers(index)]
            return found
        case _:
            return sample(2)


@functools.lru_cache(maxsize=64)
def _kinds(vocabulary: Vocabulary) -> tuple[list[Kind], np.ndarray]:
    """Returns all pairs of a shape and a color, and their cumulative probabilities."""
    kinds = [(shape, color) for shape in vocabulary.shapes for color in vocabulary.colors]
    weights = np.array([popularity(vocabulary, *kind) for kind in kinds])
    cumulative = np.cumsum(weights / weights.sum())
    cumulative[-1] = 1.0  # Without rounding errors.
    return kinds, cumulative


def popularity(vocabulary: Vocabulary, shape: str, color: str | None = None) -> float:
    """Returns how often a shape, or a shape of this color, is sampled, relative to the rarest one."""
    weight = 1.0
    for names, name in ((vocabulary.shapes, shape), (vocabulary.colors, color)):
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
    shapes, colors = ({kind[axis] for kind in kinds} for axis in range(2))
    if category in (Category.TWO_OBJECT, Category.POSITION, Category.COLOR_ATTR) and len(shapes) < 2:
        return False
    if category is Category.COLOR_ATTR and len(colors) < 2:
        return False
    if split is None:
        return True
    found = held_out(kinds)
    return category in found if split is Split.TEST else not found


def _sample_centers(rng: np.random.Generator, sizes: Sequence[str], aligned: bool) -> list[tuple[float, float]]:
    """Returns random centers on the grid for objects of these sizes. If `aligned`, all are in one row or column."""
    while True:
        centers = [GRID[i] for i in rng.permutation(len(GRID))[: len(sizes)]]
        if are_separate(tuple(centers), tuple(sizes)) and (not aligned or _are_aligned(centers)):
            return centers


@functools.lru_cache(maxsize=1 << 16)
def are_separate(centers: tuple[tuple[float, float], ...], sizes: tuple[str, ...]) -> bool:
    """Returns whether objects of these sizes at these centers have a gap between them."""
    circles = [(*center, SIZES[size] / 2) for center, size in zip(centers, sizes, strict=True)]
    return all(
        math.dist(first[:2], second[:2]) >= first[2] + second[2] + _MIN_GAP
        for index, first in enumerate(circles)
        for second in circles[:index]
    )


def _are_aligned(centers: Sequence[tuple[float, float]]) -> bool:
    columns, rows = zip(*centers, strict=True)
    return len(set(columns)) == 1 or len(set(rows)) == 1
