"""A chat in the terminal: reads lines and prints the answers while they are generated."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.processing import ImageSource, Message, open_image
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

HELP = (
    "/image FILE adds an image to your next message, /reset starts a new conversation, /quit or Ctrl-D ends the chat."
)


class ChatModel(Protocol):
    """A model that streams answers: `janus_jax.Pretrained`."""

    def chat_stream(self, messages: Sequence[Message], **options: Any) -> Iterator[str]: ...


def question(text: str, images: Sequence[ImageSource] = ()) -> Message:
    """Returns a user's message. Its images come before the text, as in the models' training data."""
    return {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n" * len(images) + text, "images": list(images)}


@dataclass
class Conversation:
    """A conversation with a model.

    Attributes:
      model: The model that answers.
      options: Options of `Pretrained.chat_stream`.
      pending_images: Images that the next message will contain.
      messages: The messages so far.
    """

    model: ChatModel
    options: Mapping[str, Any] = field(default_factory=dict)
    pending_images: list[Image.Image] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    def reset(self) -> None:
        self.pending_images, self.messages = [], []

    def ask(self, text: str) -> Iterator[str]:
        """Yields the answer to a message in pieces, and records message and answer.

        If the model fails before its first word, nothing is recorded. Otherwise the answer so far is recorded.

        Raises:
          JanusError: The conversation is longer than the model's context, or the text contains image placeholders.
        """
        messages = [*self.messages, question(text, self.pending_images)]
        answer, complete = "", False
        try:
            for piece in self.model.chat_stream(messages, **self.options):
                shown = piece if answer else piece.lstrip()
                if shown:
                    answer += shown
                    yield shown
            complete = True
        finally:
            if complete or answer:
                self.messages = [*messages, {"role": "assistant", "content": answer}]
                self.pending_images = []


def chat(conversation: Conversation, read: Callable[[], str] | None = None) -> None:
    """Reads lines and streams answers to stdout until the input ends.

    Args:
      conversation: The conversation to continue.
      read: Returns the next line, or raises EOFError at the end of the input. Default: reads from the terminal.
    """
    read = read or _terminal_reader()
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        command, _, argument = line.partition(" ")
        try:
            if command in ("/quit", "/exit"):
                return
            if command == "/reset":
                conversation.reset()
                print("(new conversation)")
            elif command == "/image":
                _add_image(conversation, argument)
            elif command.startswith("/"):
                print(f"({HELP})")
            elif line:
                _answer(conversation, line)
        except JanusError as error:
            print(f"({error})")


def _add_image(conversation: Conversation, argument: str) -> None:
    # If a file is dropped onto a terminal window, the terminal types its path in quotes.
    path = argument.strip().strip("'\"")
    if not path:
        raise JanusError("/image needs the path of an image file.")
    image = open_image(path)
    conversation.pending_images.append(image)
    print(f"({path}, {image.width} x {image.height}, is added to your next message)")


def _answer(conversation: Conversation, line: str) -> None:
    with contextlib.closing(conversation.ask(line)) as pieces:  # type: ignore[type-var]
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
            print("\n")
        except KeyboardInterrupt:
            print(" ...\n")


def _terminal_reader() -> Callable[[], str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # Editing and history for input().
    return lambda: input("> " if sys.stdin.isatty() else "")
