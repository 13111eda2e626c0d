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

    If exactly one letter is a separate word of the answer, the answer chooses this letter. However, in answers of more
    than three words, "A" is an article. Otherwise the answer chooses the option whose text it contains, if there is
    exactly one. VLMEvalKit, which Janus' authors used, applies the same rules before it asks a language model.
    """
    words = _PUNCTUATION.sub(" ", answer).split()
    letters = {letter for letter in choices if letter in words}
    if len(letters) != 1 or (letters == {"A"} and len(words) > 3):
        lower = answer.lower()
        letters = {letter for letter, text in choices.items() if text.strip() and text.strip().lower() in lower}
    return letters.pop() if len(letters) == 1 else ""
