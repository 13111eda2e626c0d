"""MMMU's own way to read answers (arXiv 2311.16502, and the scorer of https://github.com/MMMU-Benchmark/MMMU)."""

import random
import re
from collections.abc import Mapping, Sequence

SEED = 42
"""Of the letters that the scorer draws for answers that it cannot read."""

# What is between quotation marks here goes from both ends of an answer, one kind after the other.
_ENDS = ",.!?;:'"
_LEAST_WORDS = 5

_TELLING = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)

Value = str | float


def read_letter(answer: str, options: Mapping[str, str], chance: random.Random) -> str:
    """The option that an answer means.

    Letters in brackets count before those that stand alone, and in an answer of some length the options' texts come
    last; of several, the one named last. Where there is none, one is drawn.

    Args:
      options: by letter.
      chance: begun with `SEED`, and the same for all questions in their order.
    """
    text = answer
    for sign in _ENDS:
        text = text.strip(sign)
    text = f" {text} "
    places = _places(text, {letter: f"({letter})" for letter in options})
    places = places or _places(text, {letter: f" {letter} " for letter in options})
    if not places and len(text.split()) > _LEAST_WORDS:
        places = _places(text.lower(), {letter: option.lower() for letter, option in options.items()})
    # `max` takes the first of equals, as the scorer does.
    return max(places, key=lambda letter: places[letter]) if places else chance.choice(list(options))


def _places(text: str, signs: Mapping[str, str]) -> dict[str, int]:
    """Where each sign that is there is last."""
    return {letter: place for letter, sign in signs.items() if (place := text.rfind(sign)) >= 0}


def is_right(answer: str, expected: Sequence[str]) -> bool:
    """Whether an open question is answered: a right text is within one of the answer's, or a number is equal."""
    right = [value for text in expected for value in _values(text)]
    texts = [value for value in right if isinstance(value, str)]
    return any(
        any(text in said for text in texts) if isinstance(said, str) else said in right for said in read_values(answer)
    )


def read_values(answer: str) -> set[Value]:
    """What an open answer may mean: the ends of its sentences that tell a result, and all numbers in them."""
    ends = _telling_ends(answer)
    numbers = [found for end in ends for pattern in _NUMBERS for found in pattern.findall(end)]
    return {value for text in [*ends, *numbers] for value in _values(text)}


def _telling_ends(answer: str) -> list[str]:
    whole = answer.strip().strip(".").lower()
    # The scorer splits sentences at capitals, of which there are none left: at the ends of lines alone.
    lines = whole.split("\n")
    ends = []
    for number, line in enumerate(lines, 1):
        # The last line may be nothing but an equation.
        telling = (*_TELLING, "=") if number == len(lines) else _TELLING
        tails = [line.split(words)[-1].strip() for words in telling if words in line]
        # An empty tail gives way to any other that comes after it.
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            ends.append(shortest)
    return ends or [whole]


def _values(text: str) -> list[Value]:
    """A text as a number, rounded to two places, or in lower case; a letter alone would be in any word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
