"""How Janus' authors ask, and how a letter is read from an answer.

The prompts are those with which they reproduce the paper's figures in open-compass/VLMEvalKit, pull request 541:
pictures first, then a line break and the question.
"""

import re
import string
from collections.abc import Mapping, Sequence

from janus_jax.processing import ImageSource, Message
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."


def about(images: Sequence[ImageSource], text: str) -> list[Message]:
    """The user's turn: the pictures, then the text on a line of its own."""
    return [{"role": "user", "content": f"{IMAGE_PLACEHOLDER * len(images)}\n{text}", "images": list(images)}]


def short_question(question: str) -> str:
    """A question that a word or a phrase answers."""
    return f"{question}\n{SHORT_ANSWER}"


def choice_question(question: str, options: Mapping[str, str], hint: str = "") -> str:
    """A question with options by letter."""
    lines = [f"{letter}. {option}" for letter, option in options.items()]
    start = [f"Hint: {hint}"] if hint else []
    return "\n".join([*start, question, *lines, "", LETTER_ANSWER])


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Options by letter: A, B, C ..."""
    return dict(zip(string.ascii_uppercase, options, strict=False))


# What may stand around a letter that is meant as one.
_AROUND = re.compile(r"[.()\[\],:;!*#{}]")


def chosen_letter(answer: str, options: Mapping[str, str]) -> str:
    """The option that an answer means; "" where that is none, or not one alone.

    It is the one letter that stands as a word of its own, or else the one option whose text is in the answer. An "A"
    in a longer answer is an article more often than a letter, and does not count there. So does the toolkit that the
    authors used, before it asks a language model.
    """
    words = _AROUND.sub(" ", answer).split()
    letters = {letter for letter in options if letter in words}
    if len(letters) != 1 or (letters == {"A"} and len(words) > 3):
        spoken = answer.lower()
        letters = {letter for letter, text in options.items() if text.strip() and text.strip().lower() in spoken}
    return letters.pop() if len(letters) == 1 else ""
