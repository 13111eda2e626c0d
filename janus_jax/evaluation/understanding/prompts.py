"""Prompts as Janus' authors ask them, and the parser for answers to multiple-choice questions.

The prompts reproduce the paper's scores in open-compass/VLMEvalKit, pull request 541: images first, then a line break
and the question.
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
    """Returns a conversation with one user message: the images, a line break, the text."""
    return [{"role": "user", "content": f"{IMAGE_PLACEHOLDER * len(images)}\n{text}", "images": list(images)}]


def short_answer_prompt(question: str) -> str:
    """Formats a question that is answered by a word or a phrase."""
    return f"{question}\n{SHORT_ANSWER}"


def multiple_choice_prompt(question: str, choices: Mapping[str, str], hint: str = "") -> str:
    """Formats a question with choices by letter."""
    lines = [f"{letter}. {choice}" for letter, choice in choices.items()]
    first = [f"Hint: {hint}"] if hint else []
    return "\n".join([*first, question, *lines, "", LETTER_ANSWER])


def letter_choices(choices: Sequence[str]) -> dict[str, str]:
    """Returns choices by letter: A, B, C ..."""
    return dict(zip(string.ascii_uppercase, choices, strict=False))


def parse_choice(answer: str, choices: Mapping[str, str]) -> str:
    """Returns the letter of the chosen option; "" if the answer names no option or several.

    An answer chooses the only letter that is a separate word, or else the only option with its text in the answer. In
    an answer of more than three words a single "A" is taken as an article. The toolkit that the authors used has the
    same rules, before it asks a language model.
    """
    words = _PUNCTUATION.sub(" ", answer).split()
    letters = {letter for letter in choices if letter in words}
    if len(letters) != 1 or (letters == {"A"} and len(words) > 3):
        lower = answer.lower()
        letters = {letter for letter, text in choices.items() if text.strip() and text.strip().lower() in lower}
    return letters.pop() if len(letters) == 1 else ""
