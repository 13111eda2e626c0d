"""Answer parsing of the official MMMU scorer (arXiv 2311.16502, https://github.com/MMMU-Benchmark/MMMU)."""

import random
import re
from collections.abc import Mapping, Sequence

SEED = 42
"""Seed of the scorer's random letters for answers that name no option."""

# Removed from both ends of an answer, one character after another.
_STRIPPED = ",.!?;:'"
# Only answers with more words can choose an option by its text.
_SHORT_ANSWER_WORDS = 5

_RESULT_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)

Value = str | float


def parse_letter(answer: str, choices: Mapping[str, str], rng: random.Random) -> str:
    """Returns the letter of the option that an answer chooses.

    The scorer looks for letters in brackets. If there are none, it looks for letters that are separate words. If there
    are none, it looks for the texts of the options, but only in answers of more than five words. It uses the last
    match in the answer, or a random letter if nothing matches.

    Args:
      choices: Options by letter.
      rng: Generator seeded with `SEED`. All questions use the same generator, in their order.
    """
    text = answer
    for character in _STRIPPED:
        text = text.strip(character)
    text = f" {text} "
    matches = _last_positions(text, {letter: f"({letter})" for letter in choices})
    matches = matches or _last_positions(text, {letter: f" {letter} " for letter in choices})
    if not matches and len(text.split()) > _SHORT_ANSWER_WORDS:
        matches = _last_positions(text.lower(), {letter: choice.lower() for letter, choice in choices.items()})
    # `max` returns the first of equal positions, as the scorer does.
    return max(matches, key=lambda letter: matches[letter]) if matches else rng.choice(list(choices))


def _last_positions(text: str, patterns: Mapping[str, str]) -> dict[str, int]:
    return {letter: index for letter, pattern in patterns.items() if (index := text.rfind(pattern)) >= 0}


def is_correct(answer: str, expected: Sequence[str]) -> bool:
    """Returns whether the answer to an open question contains an expected text or equals an expected number."""
    correct = [value for text in expected for value in _values(text)]
    texts = [value for value in correct if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in correct
        for value in parse_values(answer)
    )


def parse_values(answer: str) -> set[Value]:
    """Returns all texts and numbers that an open answer may mean: its results (see `_results`) and their numbers."""
    ends = _results(answer)
    numbers = [match for end in ends for pattern in _NUMBERS for match in pattern.findall(end)]
    return {value for text in [*ends, *numbers] for value in _values(text)}


def _results(answer: str) -> list[str]:
    """Returns the shortest text after a result indicator in each line; the whole answer if no line has one."""
    whole = answer.strip().strip(".").lower()
    # The scorer also splits before capital letters, but its answers are in lower case by then.
    lines = whole.split("\n")
    results = []
    for number, line in enumerate(lines, 1):
        # The last line may be an equation.
        indicators = (*_RESULT_INDICATORS, "=") if number == len(lines) else _RESULT_INDICATORS
        ends = [line.split(words)[-1].strip() for words in indicators if words in line]
        # As in the scorer, any text replaces an empty one.
        shortest = ""
        for end in ends:
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in _TRIVIAL:
            results.append(shortest)
    return results or [whole]


def _values(text: str) -> list[Value]:
    """Returns a number rounded to two decimals, or a text in lower case.

    A single letter gives two texts, `" a"` and `"a "`, so that it matches no letter within a word.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
