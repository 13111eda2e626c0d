"""Scenes: what is in a picture, before it is drawn or told."""

import enum
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.shapes.dataset.vocabulary import (
    ALL_COLOURS,
    ALL_SHAPES,
    DEFAULT,
    HELD_OUT_ALONE,
    HELD_OUT_NUMBERS,
    HELD_OUT_TOGETHER,
    MOST_THINGS,
    Kind,
    Split,
    Vocabulary,
    is_held_out_pair,
)
from janus_jax.errors import JanusError

SIZES = {"small": 0.24, "large": 0.31}
"""Diameters in picture sides."""

TEXTURES = ("plain", "shaded", "striped", "dotted")
TINTS = ("paper", "mist", "sand", "sage", "lilac", "stone")

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")

_LINES = (1 / 6, 1 / 2, 5 / 6)
_PLACES = tuple((x, y) for y in _LINES for x in _LINES)
_GAP = 0.04
_ANY_SIZE = tuple(SIZES)
_POPULARITY = 1.5
_REPEATED = 0.25
_TRIES = 10_000


class Category(enum.StrEnum):
    """GenEval's six categories (arXiv 2310.11513, §3): what a prompt asks for."""

    SINGLE_OBJECT = "single_object"
    TWO_OBJECT = "two_object"
    COUNTING = "counting"
    COLORS = "colors"
    POSITION = "position"
    COLOR_ATTR = "color_attr"


class Relation(enum.StrEnum):
    """Where one thing is, seen from another."""

    LEFT = "left"
    RIGHT = "right"
    ABOVE = "above"
    BELOW = "below"

    @property
    def phrase(self) -> str:
        """As it stands between two things in a sentence."""
        return f"{self} of" if self in (Relation.LEFT, Relation.RIGHT) else str(self)

    @property
    def opposite(self) -> "Relation":
        """The same, seen from the other thing."""
        return _OPPOSITES[self]


_OPPOSITES = {
    Relation.LEFT: Relation.RIGHT,
    Relation.RIGHT: Relation.LEFT,
    Relation.ABOVE: Relation.BELOW,
    Relation.BELOW: Relation.ABOVE,
}


def _check(field: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise JanusError(f"The {field} {name!r} is none of the shapes world's; it can be {', '.join(known)}.")


@dataclass(frozen=True)
class Thing:
    """One shape in a picture: its names, and its middle from the upper left corner, in picture sides.

    Raises:
      JanusError: a name is none of the world's.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float

    def __post_init__(self) -> None:
        _check("shape", self.shape, ALL_SHAPES)
        _check("colour", self.colour, ALL_COLOURS)
        _check("size", self.size, _ANY_SIZE)

    @property
    def diameter(self) -> float:
        """In picture sides."""
        return SIZES[self.size]

    @property
    def row(self) -> str:
        """One of ROWS."""
        return ROWS[int(self.y * len(ROWS))]

    @property
    def column(self) -> str:
        """One of COLUMNS."""
        return COLUMNS[int(self.x * len(COLUMNS))]


@dataclass(frozen=True)
class Background:
    """What lies behind the things: one of TEXTURES in one of TINTS.

    All are pale: every patch at an edge shows a thing on a ground, and a dark one would double the codes that a
    tokenizer needs for them.

    Raises:
      JanusError: there is no such texture or tint.
    """

    texture: str
    tint: str

    def __post_init__(self) -> None:
        _check("texture", self.texture, TEXTURES)
        _check("tint", self.tint, TINTS)


@dataclass(frozen=True)
class Scene:
    """All that a picture shows. Things stand clear of one another; their order is that of reading."""

    things: tuple[Thing, ...]
    background: Background

    def count(self, shape: str | None = None, colour: str | None = None) -> int:
        """How many things have this shape and this colour; None for any."""
        return sum(shape in (None, thing.shape) and colour in (None, thing.colour) for thing in self.things)

    @property
    def shapes(self) -> set[str]:
        """Those that are there."""
        return {thing.shape for thing in self.things}

    @property
    def colours(self) -> set[str]:
        """Those that are there."""
        return {thing.colour for thing in self.things}


def relation(one: Thing, other: Thing) -> Relation | None:
    """Where `one` is, seen from `other`; None where it is as far to a side as above or below."""
    dx, dy = one.x - other.x, one.y - other.y
    if math.isclose(abs(dx), abs(dy), abs_tol=1e-6):
        return None
    if abs(dx) > abs(dy):
        return Relation.LEFT if dx < 0 else Relation.RIGHT
    return Relation.ABOVE if dy < 0 else Relation.BELOW


def sample_scene(
    rng: np.random.Generator,
    vocabulary: Vocabulary = DEFAULT,
    split: Split | None = Split.TRAIN,
    category: Category | None = None,
    about: frozenset[str] = frozenset(),
) -> Scene:
    """A scene of one to four things.

    Args:
      rng: the only source of chance.
      vocabulary: the shapes and colours it may show.
      split: whether it must be of no held-out combination, or of one that is its category's; None for either.
        (The prompt of a single object has no combination to hold out: in TEST what is drawn has a held-out colour.)
      category: what a prompt for it should ask; None for a mixture of things.
      about: shapes and colours of which it must show one; empty for any.

    Raises:
      JanusError: there is no such scene.
    """
    for _ in range(_TRIES):
        kinds = _propose(rng, vocabulary, category)
        if _fits(kinds, split, category) and (not about or _is_about(kinds, about)):
            sizes = [_ANY_SIZE[i] for i in rng.integers(len(SIZES), size=len(kinds))]
            if category is Category.COUNTING:
                sizes = sizes[:1] * len(kinds)
            places = _place(rng, sizes, related=category is Category.POSITION)
            things = (Thing(*kind, size, *place) for kind, size, place in zip(kinds, sizes, places, strict=True))
            background = Background(TEXTURES[rng.integers(len(TEXTURES))], TINTS[rng.integers(len(TINTS))])
            return Scene(tuple(sorted(things, key=lambda thing: (thing.y, thing.x))), background)
    raise JanusError(
        f"No {split or 'such'} scene for {category or 'a mixture'} can be made of {', '.join(vocabulary.shapes)} in "
        f"{', '.join(vocabulary.colours)}{' about ' + ', '.join(sorted(about)) if about else ''}; "
        f"give the vocabulary more shapes and colours."
    )


def _propose(rng: np.random.Generator, vocabulary: Vocabulary, category: Category | None) -> list[Kind]:
    kinds, cumulated = _kinds(vocabulary)

    def draw(count: int) -> list[Kind]:
        return [kinds[i] for i in np.searchsorted(cumulated, rng.random(count), "right")]

    match category:
        case Category.SINGLE_OBJECT | Category.COLORS:
            return draw(1)
        case Category.COUNTING:
            return draw(1) * int(rng.integers(2, MOST_THINGS + 1))
        case None:
            # Some things are like one before, so that there is something to count among others too.
            found = draw(int(rng.integers(1, MOST_THINGS + 1)))
            for index in range(1, len(found)):
                if rng.random() < _REPEATED:
                    found[index] = found[rng.integers(index)]
            return found
        case _:
            return draw(2)


@functools.lru_cache(maxsize=64)
def _kinds(vocabulary: Vocabulary) -> tuple[list[Kind], np.ndarray]:
    """What a thing can be, and the cumulated chances of it."""
    kinds = [(shape, colour) for shape in vocabulary.shapes for colour in vocabulary.colours]
    weights = np.array([popularity(vocabulary, *kind) for kind in kinds])
    cumulated = np.cumsum(weights / weights.sum())
    cumulated[-1] = 1.0  # Rounding must leave no room above the last.
    return kinds, cumulated


def popularity(vocabulary: Vocabulary, shape: str, colour: str | None = None) -> float:
    """How often a thing is of this kind, in proportion to the rarest."""
    weight = 1.0
    for names, name in ((vocabulary.shapes, shape), (vocabulary.colours, colour)):
        if name in names[: len(names) // 2]:
            weight *= _POPULARITY
    return weight


def held_out(kinds: Sequence[Kind]) -> set[Category | None]:
    """The categories whose held-out combinations a picture of just these things shows; None for any at all."""
    shapes = [shape for shape, _ in kinds]
    found: set[Category | None] = set()
    if len(kinds) == 1 and kinds[0] in HELD_OUT_ALONE:
        found |= {None, Category.SINGLE_OBJECT, Category.COLORS}
    if len(kinds) == 2 and is_held_out_pair(*kinds):
        found |= {None, Category.COLOR_ATTR}
    if len(kinds) == 2 and frozenset(shapes) in HELD_OUT_TOGETHER:
        found |= {None, Category.TWO_OBJECT, Category.POSITION}
    if len(set(kinds)) == 1 and (shapes[0], len(shapes)) in HELD_OUT_NUMBERS:
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


def _place(rng: np.random.Generator, sizes: Sequence[str], related: bool) -> list[tuple[float, float]]:
    """Places for things of these sizes, clear of one another; if related, in one row or in one column."""
    while True:
        places = [_PLACES[i] for i in rng.permutation(len(_PLACES))[: len(sizes)]]
        if _clear(tuple(places), tuple(sizes)) and (not related or _aligned(places)):
            return places


@functools.lru_cache(maxsize=1 << 16)
def _clear(places: tuple[tuple[float, float], ...], sizes: tuple[str, ...]) -> bool:
    circles = [(*place, SIZES[size] / 2) for place, size in zip(places, sizes, strict=True)]
    return all(
        math.dist(one[:2], other[:2]) >= one[2] + other[2] + _GAP
        for index, one in enumerate(circles)
        for other in circles[:index]
    )


def _aligned(places: Sequence[tuple[float, float]]) -> bool:
    columns, rows = zip(*places, strict=True)
    return len(set(columns)) == 1 or len(set(rows)) == 1
