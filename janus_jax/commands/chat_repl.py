"""A chat in the terminal: the conversation it holds, and the loop that reads lines and streams answers."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.processing import ImageSource, Message, open_image
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

HELP = "/image FILE shows a picture with your next line, /reset forgets everything, /quit or Ctrl-D ends."


class Chatter(Protocol):
    """What answers: `janus_jax.Pretrained`."""

    def chat_stream(self, messages: Sequence[Message], **options: Any) -> Iterator[str]: ...


def question(text: str, images: Sequence[ImageSource] = ()) -> Message:
    """A user's turn about images, which come before the text, as the models were tuned with."""
    return {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n" * len(images) + text, "images": list(images)}


def without_leading_space(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of a stream from its first visible character on."""
    begun = False
    for piece in pieces:
        shown = piece if begun else piece.lstrip()
        begun = begun or bool(shown)
        if shown:
            yield shown


@dataclass
class Conversation:
    """Turns with a model, each answered with all before it in mind.

    Attributes:
      model: what answers.
      options: of `Pretrained.chat_stream`.
      waiting: images that go with the next question.
      messages: the turns so far.
    """

    model: Chatter
    options: Mapping[str, Any] = field(default_factory=dict)
    waiting: list[Image.Image] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    def reset(self) -> None:
        self.waiting, self.messages = [], []

    def ask(self, text: str) -> Iterator[str]:
        """The answer as it is written. A turn that fails leaves no trace; one that is broken off keeps what it has.

        Raises:
          JanusError: the conversation is longer than the model reads, or the text has placeholders of its own.
        """
        messages = [*self.messages, question(text, self.waiting)]
        answer, complete = "", False
        try:
            for piece in without_leading_space(self.model.chat_stream(messages, **self.options)):
                answer += piece
                yield piece
            complete = True
        finally:
            if complete or answer:
                self.messages = [*messages, {"role": "assistant", "content": answer}]
                self.waiting = []


def talk(conversation: Conversation, read: Callable[[], str] | None = None) -> None:
    """Reads lines and streams answers to stdout until the lines end.

    Args:
      conversation: begins as it is.
      read: gives the next line, or raises EOFError; by default from the terminal.
    """
    read = read or _terminal()
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
                print("(forgotten)")
            elif command == "/image":
                _add_image(conversation, argument)
            elif command.startswith("/"):
                print(f"({HELP})")
            elif line:
                _answer(conversation, line)
        except JanusError as error:
            print(f"({error})")


def _add_image(conversation: Conversation, argument: str) -> None:
    # Terminals put quotes around a file that is dropped onto them.
    path = argument.strip().strip("'\"")
    if not path:
        raise JanusError("/image needs the path of a picture.")
    image = open_image(path)
    conversation.waiting.append(image)
    print(f"({path}, {image.width} x {image.height}, goes with your next line)")


def _answer(conversation: Conversation, line: str) -> None:
    pieces = conversation.ask(line)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
        print("\n")
    except KeyboardInterrupt:
        print(" ...\n")
    finally:
        pieces.close()  # type: ignore[attr-defined]


def _terminal() -> Callable[[], str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # Editing and history for input().
    return lambda: input("> " if sys.stdin.isatty() else "")
