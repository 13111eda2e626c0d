"""A chat in the terminal: reads lines and prints the answers while they are generated."""

import contextlib
import os
import shlex
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.processing import Background, ImageSource, Message, open_image
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

HELP = (
    "/image FILE, or a file dropped onto the terminal, adds an image to the next message, /reset starts a new "
    "conversation, /quit or Ctrl-D ends the chat."
)


class ChatModel(Protocol):
    """A model that streams answers: `janus_jax.Pretrained`."""

    def chat_stream(self, messages: Sequence[Message], **options: Any) -> Iterator[str]: ...


def question(text: str, images: Sequence[ImageSource] = ()) -> Message:
    """Returns a user message with images.

    Image placeholders in the text mark the positions of the images, in order. Without placeholders, the images come
    before the text, as in the models' training data.

    Raises:
      JanusError: The text contains placeholders, but not one per image.
    """
    placeholders = text.count(IMAGE_PLACEHOLDER)
    if placeholders not in (0, len(images)):
        raise JanusError(
            f"The message contains {placeholders} {IMAGE_PLACEHOLDER}, but {len(images)} images are given; write one "
            f"{IMAGE_PLACEHOLDER} per image, or none to put the images before the text."
        )
    content = text if placeholders else f"{IMAGE_PLACEHOLDER}\n" * len(images) + text
    return {"role": "user", "content": content, "images": list(images)}


def typed_paths(text: str) -> list[str]:
    """Returns the file paths in a line that a user typed, or that the terminal inserted for dropped files.

    If the whole text is the path of an existing file, only this path is returned. Otherwise the text is split into
    paths as in a shell, with quotes and backslashes. A path may start with `~`, or be a `file://` URL with percent
    escapes.
    """
    text = text.strip()
    if os.path.exists(whole := expand_path(text)):
        return [whole]
    try:
        words = shlex.split(text)
    except ValueError:  # A single quote or backslash, as in "it's.png".
        return [whole]
    paths = [expand_path(word) for word in words]
    # Several words are several files only if all of them exist; otherwise they are one name with spaces.
    return paths if len(paths) == 1 or (paths and all(map(os.path.exists, paths))) else [whole]


def expand_path(text: str) -> str:
    """Returns a path whose `~` or `file://` is resolved."""
    if text.startswith("file://"):
        # The part before the path is empty or the name of this computer.
        _, slash, path = text.removeprefix("file://").partition("/")
        return slash + urllib.parse.unquote(path, errors="surrogateescape")
    return os.path.expanduser(text)


@dataclass
class Conversation:
    """A conversation with a model.

    Attributes:
      model: The model that answers.
      options: Options of `Pretrained.chat_stream`.
      background: Background of transparent pixels, see `Background`.
      pending_images: Images that the next message will contain.
      messages: The messages so far.
    """

    model: ChatModel
    options: Mapping[str, Any] = field(default_factory=dict)
    background: Background = "none"
    pending_images: list[Image.Image] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    def reset(self) -> None:
        self.pending_images, self.messages = [], []

    def add_image(self, path: str) -> Image.Image:
        """Reads an image for the next message.

        Raises:
          JanusError: The file is missing or not an image.
        """
        image = open_image(path, background=self.background)
        self.pending_images.append(image)
        return image

    def ask(self, text: str) -> Iterator[str]:
        """Yields the answer to a message in pieces, and records message and answer.

        If generation fails, the answer so far is recorded with the message; if there is none yet, nothing is recorded.

        Raises:
          JanusError: The conversation is longer than the model's context, or the text contains image placeholders, but
            not one per image.
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
                _add_images(conversation, argument)
            elif _is_dropped(line) or (command.startswith("/") and "/" in command[1:]):
                _add_images(conversation, line)
            elif command.startswith("/"):
                print(f"({HELP})")
            elif line:
                _answer(conversation, line)
        except JanusError as error:
            print(f"({error})")


def _is_dropped(line: str) -> bool:
    """Returns whether a line consists of dropped files, for which a terminal inserts absolute paths."""
    if not line.lstrip("'\"").startswith(("/", "~", "file://")):
        return False
    return all(map(os.path.isfile, typed_paths(line)))


def _add_images(conversation: Conversation, typed: str) -> None:
    if not typed.strip():
        raise JanusError("/image needs the path of an image file.")
    for path in typed_paths(typed):
        image = conversation.add_image(path)
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
