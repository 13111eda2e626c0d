"""Handlers of the web page: chat, generation and editing with the checks and limits of the API."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from janus_jax.config import JanusConfig
from janus_jax.generation.best_of import BestOf
from janus_jax.generation.engine import EditRequest, GenerateRequest, PartialPicture, Picture, TextPiece
from janus_jax.generation.image_sampler import GeneratedImage
from janus_jax.processing import ImageSource
from janus_jax.rewards import make_reward
from janus_jax.serving.bodies import parse
from janus_jax.serving.errors import ApiError, to_api_error
from janus_jax.serving.images import decode
from janus_jax.serving.protocol import ChatBody, PictureBody
from janus_jax.serving.service import Service
from janus_jax.serving.streams import EventStream

_PARTIAL_IMAGES = 3

Pictures = list[tuple[str, str | None]]
"""Files of images, with captions."""


@dataclass(frozen=True, eq=False)
class PageHandlers:
    """Handlers of the page's events. An error of a request is a `gr.Error` with one sentence.

    Attributes:
      service: The service whose engine and limits the page shares with the API.
      folder: Folder for the files of images. The caller removes old ones.
    """

    service: Service
    folder: Path

    async def chat(
        self,
        message: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        temperature: float,
        max_tokens: float | None,
        seed: float | None,
    ) -> AsyncGenerator[str | dict[str, Any]]:
        """Yields an answer, each time with all of its text so far, as a message if it has images.

        Args:
          message: The new message: its `text` and the paths of its `files`.
          history: Messages of the conversation so far, as `gr.Chatbot` passes them.
          temperature: Sampling temperature.
          max_tokens: Maximum number of tokens of the answer.
          seed: Random seed.
        """
        with _errors():
            is_janus = isinstance(self.service.engine.model.config, JanusConfig)
            fields: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens or None, "seed": seed or 0}
            fields["modalities"] = ["text", "image"] if is_janus else ["text"]
            body = parse(fields | {"messages": _messages(message, history)}, ChatBody)
            options, tokens = self.service.options, self.service.tokens

            def read(path: str, param: str) -> ImageSource:
                return tokens.restore(decode(Path(path).read_bytes(), options, "The image"))

            request = await asyncio.to_thread(body.request, read, options)
            self.service.log("chat", [one["content"] for one in request.messages])
            stream = await self.service.submit(request, "chat")
            content: list[str | dict[str, str]] = [""]
            async with contextlib.aclosing(stream.events()) as events:
                async for event in events:
                    if isinstance(event, TextPiece):
                        content[-1] = f"{content[-1]}{event.text}"
                    elif isinstance(event, Picture):
                        tokens.add(event.with_tokens)
                        content += [{"path": await self._save(event.image)}, ""]
                    if isinstance(event, TextPiece | Picture):
                        yield str(content[0]).strip() if len(content) == 1 else {"content": [*filter(None, content)]}

    async def generate(
        self, prompt: str, n: int, best_of: int, seed: float | None, is_random: bool, settings: Mapping[str, Any]
    ) -> AsyncGenerator[tuple[Pictures, str, int]]:
        """Yields generated images, a line about them, and the seed, also while images are unfinished.

        Args:
          prompt: Description of the images.
          n: Number of images.
          best_of: Number of candidates for each image, of which the model selects the one that shows the prompt best.
          seed: Random seed.
          is_random: Whether a new random seed replaces `seed`.
          settings: Settings of the image sampler.
        """
        with _errors():
            used = secrets.randbelow(2**32) if is_random else int(seed or 0)
            line = _line(used, settings)
            body = self._picture_body(prompt, n * best_of, used, settings)
            files: dict[int, str] = {}
            async for files in self._pictures(body.generation(), body.prompt, "image_generation"):
                yield _gallery(files), line, used
            if best_of > 1:
                yield _gallery(files), f"{line} · selecting", used
                best = await self._select([files[number] for number in range(n * best_of)], prompt, best_of)
                yield best, f"{line} · best of {best_of}", used

    async def edit(
        self,
        path: str | None,
        instruction: str,
        n: int,
        seed: float | None,
        is_random: bool,
        settings: Mapping[str, Any],
    ) -> AsyncGenerator[tuple[Pictures, str, int]]:
        """Yields edited images. See `generate`.

        Args:
          path: File of the source image.
          instruction: What to change.
          n: Number of images.
          seed: Random seed.
          is_random: Whether a new random seed replaces `seed`.
          settings: Settings of the sampler of edits.
        """
        with _errors():
            if path is None:
                raise ApiError(400, "The image to edit is missing; upload one.")
            used = secrets.randbelow(2**32) if is_random else int(seed or 0)
            body = self._picture_body(instruction, n, used, settings)
            source = await asyncio.to_thread(lambda: decode(Path(path).read_bytes(), self.service.options, "The image"))
            async for files in self._pictures(body.edit([source]), body.prompt, "image_edit"):
                yield _gallery(files), _line(used, settings), used

    def _picture_body(self, prompt: str, n: int, seed: int, settings: Mapping[str, Any]) -> PictureBody:
        fields = {"prompt": prompt, "n": n, "seed": seed, "stream": True, "partial_images": _PARTIAL_IMAGES}
        body = parse({**settings, **fields}, PictureBody)
        body.check(self.service.side, self.service.options)
        return body

    async def _pictures(
        self, request: GenerateRequest | EditRequest, prompt: str, route: str
    ) -> AsyncGenerator[dict[int, str]]:
        """Yields the files of a request's images by number, each time that one of them changes."""
        self.service.log(route, [prompt])
        stream: EventStream = await self.service.submit(request, route)
        files: dict[int, str] = {}
        async with contextlib.aclosing(stream.events()) as events:
            async for event in events:
                if isinstance(event, PartialPicture | Picture):
                    files[event.number] = await self._save(event.image)
                    yield files

    async def _save(self, image: Image.Image) -> str:
        """Writes an image to a new file, because a browser may be reading the one before."""
        path = self.folder / f"{secrets.token_hex(16)}.png"
        await asyncio.to_thread(image.save, path)
        return str(path)

    async def _select(self, candidates: Sequence[str], prompt: str, best_of: int) -> Pictures:
        engine = self.service.engine
        select = BestOf(best_of, make_reward("self", field="judge", model=lambda: engine.model))
        images = [GeneratedImage(0, number, Image.open(file)) for number, file in enumerate(candidates)]
        best = engine.call(lambda: list(select.stream(images, [prompt], [{}], len(images))))
        files = dict[int | None, str](enumerate(candidates))
        return [(files[one.candidate], f"score {one.score:.2f}") for one in await asyncio.wrap_future(best)]


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise gr.Error(to_api_error(error).message, title="The request failed", print_exception=False) from error


def _messages(message: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a conversation in the form of the API, with one message a turn and its images first."""
    last = [{"type": "file", "file": {"path": path}} for path in message["files"]]
    messages: list[dict[str, Any]] = []
    for one in (*history, {"role": "user", "content": [*last, {"type": "text", "text": message["text"]}]}):
        parts = [_part(part) for part in one["content"]]
        if messages and messages[-1]["role"] == one["role"]:
            messages[-1]["content"] += parts
        else:
            messages.append({"role": one["role"], "content": parts})
    return messages


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "file":
        return {"type": "image_url", "image_url": {"url": part["file"]["path"]}}
    return {"type": "text", "text": part["text"]}


def _gallery(files: Mapping[int, str]) -> Pictures:
    return [(file, None) for _, file in sorted(files.items())]


def _line(seed: int, settings: Mapping[str, Any]) -> str:
    return " · ".join((f"seed {seed}", *(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())))
