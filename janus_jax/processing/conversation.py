"""Conversation templates: how each model release writes a conversation as one string."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict

from janus_jax.config import ConversationStyle
from janus_jax.errors import JanusError
from janus_jax.processing.images import ImageSource
from janus_jax.processing.tokenizer import END_OF_SENTENCE, IMAGE_PLACEHOLDER

UNDERSTANDING_SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
"""Default system prompt of conversations. Prompts for image generation have no system prompt."""


class Message(TypedDict):
    """One message of a conversation.

    Attributes:
      role: "user", "assistant", "system" (first message only), or a role string of a template, such as "<|User|>".
      content: Text with one `<image_placeholder>` per image.
      images: Images in the order of their placeholders.
    """

    role: str
    content: str
    images: NotRequired[Sequence[ImageSource]]


class Rendered(NamedTuple):
    """A conversation as one string.

    Attributes:
      text: The string, without begin-of-sentence.
      answers: Character range (start, end) of each non-empty answer of the assistant. A range starts after the colon of
        the role, where the model starts to write, and includes end-of-sentence.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ConversationTemplate:
    """Renders messages as the string that a model was trained on (Janus, arXiv 2410.13848, section 3.2).

    Attributes:
      user: The user's role string.
      assistant: The assistant's role string.
      separator: Text after the system prompt and after each message of the user.
      end_of_answer: Text after each answer.
    """

    user: str
    assistant: str
    separator: str = "\n\n"
    end_of_answer: str = END_OF_SENTENCE

    def render(self, messages: Sequence[Message], system_prompt: str = "") -> Rendered:
        """Renders a conversation as one string.

        White space around the content of a message is removed. If the user's message is the last one, the assistant's
        role string follows it, so that the model writes the answer. A leading "system" message replaces
        `system_prompt`.

        Raises:
          JanusError: The user has no message, a role is unknown, or a message is malformed.
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
                raise JanusError("A system message follows other messages; it can only be the first.")
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
"""The templates: "janus" belongs to Janus-1.3B and JanusFlow, "janus_pro" to Janus-Pro."""

# Every template accepts the role strings of all templates, so that a script for one release works with another.
_ROLES = {
    "system": "system",
    **dict.fromkeys(("user", *(t.user for t in TEMPLATES.values())), "user"),
    **dict.fromkeys(("assistant", *(t.assistant for t in TEMPLATES.values())), "assistant"),
}


def assistant_images(messages: Sequence[Message]) -> list[int]:
    """Returns the numbers of the images of a conversation that are in messages of the assistant, counted from 0."""
    roles = [message["role"] for message in messages for _ in range(message["content"].count(IMAGE_PLACEHOLDER))]
    return [number for number, role in enumerate(roles) if _ROLES.get(role) == "assistant"]


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
