"""Shapes, colors and held-out combinations of the dataset."""

import enum
import zlib
from dataclasses import dataclass
from typing import Self

from janus_jax.errors import JanusError

ALL_SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "moon")
ALL_COLORS = ("red", "blue", "green", "yellow", "purple", "orange", "pink", "cyan")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
MAX_OBJECTS = max(NUMBERS)

Kind = tuple[str, str]
"""A shape and its color."""


class Split(enum.StrEnum):
    """Split of the dataset. Every image of TEST shows a held-out combination and nothing else.

    TRAIN shows held-out combinations only among other objects. If TRAIN had no red circle at all, a model would learn
    that circles are never red, and would not recognize a red circle.
    """

    TRAIN = "train"
    TEST = "test"


def _check(field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise JanusError(f"The vocabulary's {field} contain {unknown[0]!r}; choose among {', '.join(known)}.")
    if len(set(names)) != len(names) or len(names) < 4:
        raise JanusError(f"The vocabulary's {field} are {', '.join(names)}; give four or more different ones.")


@dataclass(frozen=True)
class Vocabulary:
    """Shapes and colors of scenes and sentences.

    Names in the first half of each tuple occur 1.5 times as often as the others. POPE calls them popular.

    Raises:
      JanusError: The dataset has no such name, or there are fewer than four.
    """

    shapes: tuple[str, ...] = ALL_SHAPES[:5]
    colors: tuple[str, ...] = ALL_COLORS[:6]

    def __post_init__(self) -> None:
        _check("shapes", self.shapes, ALL_SHAPES)
        _check("colors", self.colors, ALL_COLORS)

    def with_extras(self, *names: str) -> Self:
        """Returns this vocabulary with additional shapes and colors, for example for fine-tuning.

        Raises:
          JanusError: The dataset has no such name.
        """
        unknown = [name for name in names if name not in ALL_SHAPES + ALL_COLORS]
        if unknown:
            raise JanusError(
                f"The shapes dataset has no {unknown[0]!r}; choose among {', '.join(ALL_SHAPES + ALL_COLORS)}."
            )
        new = [name for name in dict.fromkeys(names) if name not in self.shapes + self.colors]
        return type(self)(
            (*self.shapes, *(name for name in new if name in ALL_SHAPES)),
            (*self.colors, *(name for name in new if name in ALL_COLORS)),
        )


DEFAULT_VOCABULARY = Vocabulary()
"""Vocabulary of the training data."""

FULL_VOCABULARY = Vocabulary(ALL_SHAPES, ALL_COLORS)
"""The default vocabulary and the words for fine-tuning: heart, ring, moon, pink, cyan."""

HELD_OUT_SINGLES = frozenset(
    {
        ("circle", "red"),
        ("square", "blue"),
        ("triangle", "green"),
        ("star", "yellow"),
        ("cross", "orange"),
        ("heart", "red"),
        ("ring", "blue"),
        ("moon", "yellow"),
        ("cross", "pink"),
        ("star", "cyan"),
    }
)
"""Colored shapes that are never the only object of an image in TRAIN."""

HELD_OUT_SHAPE_PAIRS = frozenset(
    map(
        frozenset[str],
        [("square", "cross"), ("triangle", "star"), ("circle", "heart"), ("square", "ring"), ("star", "moon")],
    )
)
"""Pairs of shapes that are never the two objects of an image in TRAIN. No prompt of TRAIN names such a pair."""

HELD_OUT_COUNTS = frozenset({("star", 2), ("triangle", 3), ("square", 2), ("heart", 3), ("ring", 2), ("moon", 3)})
"""Shapes and counts that never occur in TRAIN as the only objects and in one color. No prompt of TRAIN names them.

They occur in several colors and among other objects. Four, the maximum, never occurs among others and is not held out.
"""

_HELD_OUT_PAIRS_ONE_IN = 6


def is_held_out_pair(first: Kind, second: Kind) -> bool:
    """Returns whether these two objects are never the only two of an image in TRAIN.

    One sixth of the pairs with different shapes and colors are held out, chosen by a hash, so that they follow no rule.
    """
    if first[0] == second[0] or first[1] == second[1]:
        return False
    words = " and ".join(sorted(f"{color} {shape}" for shape, color in (first, second)))
    return zlib.crc32(words.encode()) % _HELD_OUT_PAIRS_ONE_IN == 0
