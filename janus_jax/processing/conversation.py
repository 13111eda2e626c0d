"""Conversations as the models were trained to read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict

from janus_jax.config import ConversationStyle
from janus_jax.errors import JanusError
from janus_jax.processing.images import ImageSource
from janus_jax.processing.tokenizer import END_OF_SENTENCE

UNDERSTANDING_SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
"""What the models were tuned with for understanding; image generation has none."""


class Message(TypedDict):
    """One turn.

    Attributes:
      role: "user", "assistant" or (in the first message alone) "system"; or a released model's own role string.
      content: the text, with one `<image_placeholder>` where each image belongs.
      images: the images, in the order of their placeholders.
    """

    role: str
    content: str
    images: NotRequired[Sequence[ImageSource]]


class Rendered(NamedTuple):
    """A conversation as one string, and the character ranges in it that the assistant wrote."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ConversationTemplate:
    """Turns messages into the string a model was trained on (Janus, arXiv 2410.13848, §3.2).

    Attributes:
      user: the user's role string.
      assistant: the assistant's role string.
      separator: after the system prompt and every user's turn.
      end_of_answer: after every answer.
    """

    user: str
    assistant: str
    separator: str = "\n\n"
    end_of_answer: str = END_OF_SENTENCE

    def render(self, messages: Sequence[Message], system_prompt: str = "") -> str:
        """The conversation as one string, without begin-of-sentence.

        Contents are stripped of white space around them. A conversation that does not end with the assistant's
        turn is given an empty one, for the model to fill. A leading "system" message takes `system_prompt`'s place.

        Raises:
          JanusError: there is no turn, a role is unknown, or a message is none.
        """
        return self.render_with_answers(messages, system_prompt).text

    def render_with_answers(self, messages: Sequence[Message], system_prompt: str = "") -> Rendered:
        """As `render`, with the ranges that are answers.

        An answer reaches from behind the role's colon, where the model begins to write, to behind the
        end-of-sentence. An empty turn has none.
        """
        turns = [_turn(index, message) for index, message in enumerate(messages)]
        if turns and turns[0][0] == "system":
            system_prompt = turns.pop(0)[1]
        if not turns:
            raise JanusError("A conversation needs at least one message of the user.")
        if turns[-1][0] == "user":
            turns.append(("assistant", ""))

        text = f"{system_prompt.lstrip()}{self.separator}" if system_prompt.strip() else ""
        answers = []
        for role, content in turns:
            if role == "system":
                raise JanusError("A system message stands after other messages; it can only be the first.")
            is_answer = role == "assistant"
            text += f"{self.assistant if is_answer else self.user}:"
            if content:
                start = len(text)
                text += f" {content}{self.end_of_answer if is_answer else self.separator}"
                if is_answer:
                    answers.append((start, len(text)))
        return Rendered(text, tuple(answers))


TEMPLATES: dict[ConversationStyle, ConversationTemplate] = {
    "janus": ConversationTemplate(user="User", assistant="Assistant"),
    "janus_pro": ConversationTemplate(user="<|User|>", assistant="<|Assistant|>"),
}
"""By `JanusConfig.conversation`: Janus-1.3B and JanusFlow, and Janus-Pro."""

# Any model's role strings do for every model: a script written for one release must not lose quality on another.
_ROLES = {
    "system": "system",
    **dict.fromkeys(("user", *(t.user for t in TEMPLATES.values())), "user"),
    **dict.fromkeys(("assistant", *(t.assistant for t in TEMPLATES.values())), "assistant"),
}


def _turn(index: int, message: Message) -> tuple[str, str]:
    try:
        role, content = message["role"], message["content"]
    except (KeyError, TypeError):
        raise JanusError(f'Message {index} is {message!r}; it must be a dict with "role" and "content".') from None
    if role not in _ROLES:
        raise JanusError(f"Message {index} has the role {role!r}; it must be one of {', '.join(_ROLES)}.")
    if not isinstance(content, str):
        raise JanusError(f"Message {index} has the content {content!r}; it must be a string.")
    return _ROLES[role], content.strip()
