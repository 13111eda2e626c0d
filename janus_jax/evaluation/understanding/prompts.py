"""Prompts of Janus' authors, and the parser for answers to multiple-choice questions.

The prompts are those of open-compass/VLMEvalKit, pull request 541, which reproduces the paper's scores. A prompt has
the images first, then a line break and the question.
"""

import re
import string
from collections.abc import Mapping, Sequence

from janus_jax.processing import ImageSource, Message
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."

# Characters that may surround an option letter.
_PUNCTUATION = re.compile(r"[.()\[\],:;!*#{}]")
_NO_OPTION = "Z"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def user_message(images: Sequence[ImageSource], text: str) -> list[Message]:
    """Returns a conversation of one user message: images, a line break and text."""
    return [{"role": "user", "content": f"{IMAGE_PLACEHOLDER * len(images)}\n{text}", "images": list(images)}]


def short_answer_prompt(question: str) -> str:
    """Formats a question that asks for a word or a phrase."""
    return f"{question}\n{SHORT_ANSWER}"


def multiple_choice_prompt(question: str, choices: Mapping[str, str], hint: str = "") -> str:
    """Formats a multiple-choice question; `choices` are the options by letter."""
    lines = [f"{letter}. {choice}" for letter, choice in choices.items()]
    first = [f"Hint: {hint}"] if hint else []
    return "\n".join([*first, question, *lines, "", LETTER_ANSWER])


def letter_choices(choices: Sequence[str]) -> dict[str, str]:
    """Returns options by letter: A, B, C ..."""
    return dict(zip(string.ascii_uppercase, choices, strict=False))


def parse_choice(answer: str, choices: Mapping[str, str]) -> str:
    """Returns the letter of the option that an answer chooses; "" if it chooses no option or several.

    If exactly one letter is a separate word of the answer, the answer chooses this letter. Otherwise the answer chooses
    the option whose text it contains, if there is exactly one. An answer that refuses, or that has the letter Z and no
    option letter, chooses no option.

    These are the rules of VLMEvalKit's exact matching when Janus' authors used it (`can_infer`, until July 2025). Later
    versions ignore letters at the start of long answers.
    """
    if any(refusal in answer for refusal in _REFUSALS):
        return ""
    words = set(_PUNCTUATION.sub(" ", answer).split())
    letters = [letter for letter in choices if letter in words]
    if not letters and _NO_OPTION in words:
        return ""
    if len(letters) != 1:
        lower = answer.lower()
        letters = [letter for letter, text in choices.items() if text.strip() and text.lower() in lower]
    return letters[0] if len(letters) == 1 else ""
