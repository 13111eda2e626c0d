"""A chat in the terminal: reads lines and prints the answers while they are generated."""

import contextlib
import os
import shlex
import sys
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from janus_jax.commands.terminal_images import Protocol, image_sequence
from janus_jax.errors import JanusError
from janus_jax.image_files import save_png
from janus_jax.processing import Background, ImageSource, ImageWithTokens, Message, answer_message, open_image
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

HELP = (
    "/image FILE, or a file dropped onto the terminal, adds an image to the next message, /reset starts a new "
    "conversation, /quit or Ctrl-D ends the chat."
)


Responder = Callable[..., Iterator[str | ImageWithTokens]]
"""Function that streams an answer to messages: `Pretrained.converse` or `Pretrained.chat_stream`."""

_NUM_SEEDS = 2**32


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
      respond: Streams the model's answers.
      options: Options of `respond`. `seed` is that of the first answer; each further answer has the next one.
      background: Background of transparent pixels, see `Background`.
      pending_images: Images that the next message will contain.
      messages: The messages so far.
    """

    respond: Responder
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

    def ask(self, text: str) -> Iterator[str | ImageWithTokens]:
        """Yields the answer to a message in pieces, and records message and answer.

        If generation fails, the answer so far is recorded with the message; if there is none yet, nothing is recorded.

        Raises:
          JanusError: The conversation is longer than the model's context, or the text contains image placeholders, but
            not one per image.
        """
        messages = [*self.messages, question(text, self.pending_images)]
        options = dict(self.options)
        if "seed" in options:
            options["seed"] = (options["seed"] + len(self.messages) // 2) % _NUM_SEEDS
        answer: list[str | ImageWithTokens] = []
        complete = False
        try:
            for piece in self.respond(messages, **options):
                shown = piece.lstrip() if isinstance(piece, str) and not answer else piece
                if shown:
                    answer.append(shown)
                    yield shown
            complete = True
        finally:
            if complete or answer:
                self.messages = [*messages, answer_message(answer)]
                self.pending_images = []


@dataclass
class ImageOutput:
    """Saves and shows the images of a chat.

    Attributes:
      folder: Folder of the images, which are 00000.png, 00001.png, ... Files that exist are kept.
      protocol: How the terminal shows images.
      metadata: Metadata of the files.
    """

    folder: Path
    protocol: Protocol = "none"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _next: int = 0

    def write(self, image: Image.Image, prompt: str) -> None:
        """Prints an image, saves it and prints its path.

        Args:
          image: The image.
          prompt: Message of the user, for the file's metadata.

        Raises:
          JanusError, RunStopped: The file cannot be written, see `storage.writing`.
        """
        print(end=image_sequence(image, self.protocol), flush=True)
        while (path := self.folder / f"{self._next:05}.png").exists():
            self._next += 1
        save_png(image, path, {"prompt": prompt, **self.metadata})
        print(path, flush=True)


def print_answer(pieces: Iterable[str | ImageWithTokens], prompt: str, images: ImageOutput) -> None:
    """Prints an answer while it is generated, with images on their own lines."""
    is_line_start = True
    for piece in pieces:
        if isinstance(piece, str):
            print(piece, end="", flush=True)
            is_line_start = piece.endswith("\n")
            continue
        if not is_line_start:
            print()
        images.write(piece.image, prompt)
        is_line_start = True
    if not is_line_start:
        print()


def chat(conversation: Conversation, images: ImageOutput, read: Callable[[], str] | None = None) -> None:
    """Reads lines and streams answers to stdout until the input ends.

    Args:
      conversation: The conversation to continue.
      images: Output of images that the model generates.
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
                _answer(conversation, line, images)
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


def _answer(conversation: Conversation, line: str, images: ImageOutput) -> None:
    with contextlib.closing(conversation.ask(line)) as pieces:  # type: ignore[type-var]
        try:
            print_answer(pieces, line, images)
            print()
        except KeyboardInterrupt:
            print(" ...\n")


def _terminal_reader() -> Callable[[], str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # Editing and history for input().
    return lambda: input("> " if sys.stdin.isatty() else "")
