"""The words of the world, and which of them are never put together where a model learns."""

import enum
import zlib
from dataclasses import dataclass
from typing import Self

from janus_jax.errors import JanusError

ALL_SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "moon")
ALL_COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "pink", "cyan")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
MOST_THINGS = max(NUMBERS)

Kind = tuple[str, str]
"""A shape and its colour."""


class Split(enum.StrEnum):
    """TRAIN has no picture of just a held-out combination; every picture and prompt of TEST is of one.

    Among other things TRAIN has them too. Were a red circle never seen at all, that would be worth knowing: a model
    would learn that circles are not red, and see none.
    """

    TRAIN = "train"
    TEST = "test"


def _check(field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise JanusError(f"The vocabulary's {field} hold {unknown[0]!r}; they can be {', '.join(known)}.")
    if len(set(names)) != len(names) or len(names) < 4:
        raise JanusError(f"The vocabulary's {field} are {', '.join(names)}; give four or more different ones.")


@dataclass(frozen=True)
class Vocabulary:
    """The shapes and colours that scenes are made of and that sentences name.

    Those listed in the first half come up half as often again as the others: they are what POPE calls popular.

    Raises:
      JanusError: a name is none of the world's, or there are too few to make a scene.
    """

    shapes: tuple[str, ...] = ALL_SHAPES[:5]
    colours: tuple[str, ...] = ALL_COLOURS[:6]

    def __post_init__(self) -> None:
        _check("shapes", self.shapes, ALL_SHAPES)
        _check("colours", self.colours, ALL_COLOURS)

    def with_extras(self, *names: str) -> Self:
        """This vocabulary and more shapes and colours, by name: what fine-tuning teaches.

        Raises:
          JanusError: a name is none of the world's.
        """
        unknown = [name for name in names if name not in ALL_SHAPES + ALL_COLOURS]
        if unknown:
            raise JanusError(
                f"The shapes world knows no {unknown[0]!r}; its names are {', '.join(ALL_SHAPES + ALL_COLOURS)}."
            )
        new = [name for name in dict.fromkeys(names) if name not in self.shapes + self.colours]
        return type(self)(
            (*self.shapes, *(name for name in new if name in ALL_SHAPES)),
            (*self.colours, *(name for name in new if name in ALL_COLOURS)),
        )


DEFAULT = Vocabulary()
"""What the world shows and names unless told otherwise."""

EVERYTHING = Vocabulary(ALL_SHAPES, ALL_COLOURS)
"""With the kept-out shapes (heart, ring, moon) and colours (pink, cyan)."""

HELD_OUT_ALONE = frozenset(
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
"""Shapes of a colour that no picture in TRAIN shows by themselves."""

HELD_OUT_TOGETHER = frozenset(
    map(
        frozenset[str],
        [("square", "cross"), ("triangle", "star"), ("circle", "heart"), ("square", "ring"), ("star", "moon")],
    )
)
"""Shapes that no picture in TRAIN shows as its two things, so that no prompt brings them together either."""

HELD_OUT_NUMBERS = frozenset({("star", 2), ("triangle", 3), ("square", 2), ("heart", 3), ("ring", 2), ("moon", 3)})
"""So many of a shape that no picture in TRAIN shows in one colour with nothing else, so that no prompt asks for them.
In several colours they are met, and with other things: the most there are, four, could not be."""

_PAIRS_SHARE = 6


def is_held_out_pair(one: Kind, other: Kind) -> bool:
    """Whether no picture in TRAIN shows these two, of unlike shapes and colours, as its two things.

    A sixth of all, drawn by a hash: they follow no rule that a model could learn.
    """
    if one[0] == other[0] or one[1] == other[1]:
        return False
    words = " and ".join(sorted(f"{colour} {shape}" for shape, colour in (one, other)))
    return zlib.crc32(words.encode()) % _PAIRS_SHARE == 0
