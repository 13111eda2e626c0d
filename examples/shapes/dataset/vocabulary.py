"""Shapes, colours and held-out combinations of the dataset."""

import enum
import zlib
from dataclasses import dataclass
from typing import Self

from janus_jax.errors import JanusError

ALL_SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "moon")
ALL_COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "pink", "cyan")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
MAX_OBJECTS = max(NUMBERS)

Kind = tuple[str, str]
"""A shape and its colour."""


class Split(enum.StrEnum):
    """Split of the dataset. Every image and prompt of TEST shows a held-out combination and nothing else.

    TRAIN shows held-out combinations only among other objects. If TRAIN had no red circle at all, a model would learn
    that circles are never red, and would not recognize one.
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
    """Shapes and colours of scenes and sentences.

    Names in the first half of each tuple occur 1.5 times as often as the others: the popular ones, in POPE's terms.

    Raises:
      JanusError: The dataset has no such name, or there are fewer than four.
    """

    shapes: tuple[str, ...] = ALL_SHAPES[:5]
    colours: tuple[str, ...] = ALL_COLOURS[:6]

    def __post_init__(self) -> None:
        _check("shapes", self.shapes, ALL_SHAPES)
        _check("colours", self.colours, ALL_COLOURS)

    def with_extras(self, *names: str) -> Self:
        """Returns this vocabulary with further shapes and colours, for example to fine-tune on.

        Raises:
          JanusError: The dataset has no such name.
        """
        unknown = [name for name in names if name not in ALL_SHAPES + ALL_COLOURS]
        if unknown:
            raise JanusError(
                f"The shapes dataset has no {unknown[0]!r}; choose among {', '.join(ALL_SHAPES + ALL_COLOURS)}."
            )
        new = [name for name in dict.fromkeys(names) if name not in self.shapes + self.colours]
        return type(self)(
            (*self.shapes, *(name for name in new if name in ALL_SHAPES)),
            (*self.colours, *(name for name in new if name in ALL_COLOURS)),
        )


DEFAULT_VOCABULARY = Vocabulary()
"""Vocabulary of the training data."""

FULL_VOCABULARY = Vocabulary(ALL_SHAPES, ALL_COLOURS)
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
"""Coloured shapes that are never the only object of an image in TRAIN."""

HELD_OUT_SHAPE_PAIRS = frozenset(
    map(
        frozenset[str],
        [("square", "cross"), ("triangle", "star"), ("circle", "heart"), ("square", "ring"), ("star", "moon")],
    )
)
"""Pairs of shapes that are never the two objects of an image in TRAIN. No prompt of TRAIN names such a pair."""

HELD_OUT_COUNTS = frozenset({("star", 2), ("triangle", 3), ("square", 2), ("heart", 3), ("ring", 2), ("moon", 3)})
"""Shapes and counts that never occur in TRAIN as the only objects and in one colour. No prompt of TRAIN names them.

They occur in several colours and among other objects. Four, the maximum, never occurs among others and is not held out.
"""

_HELD_OUT_PAIRS_ONE_IN = 6


def is_held_out_pair(first: Kind, second: Kind) -> bool:
    """Returns whether these two kinds are never the two objects of an image in TRAIN.

    A hash holds out one sixth of the pairs with different shapes and colours, so that no rule describes them.
    """
    if first[0] == second[0] or first[1] == second[1]:
        return False
    words = " and ".join(sorted(f"{colour} {shape}" for shape, colour in (first, second)))
    return zlib.crc32(words.encode()) % _HELD_OUT_PAIRS_ONE_IN == 0
