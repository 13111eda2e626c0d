"""Requests to `janus-serve` for benchmarks: good, malformed and oversized ones, and the reading of answers."""

import base64
import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import numpy as np
from PIL import Image

Fate = Literal["good", "cancelled", "malformed", "oversized"]
Answer = tuple[str, tuple[str, ...]]
"""Text of an answer, and the hashes of its pictures' pixels."""

MAX_BODY = 2**20

JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class HttpRequest:
    """A request.

    Attributes:
      path: Path of the route after /v1/.
      body: The body.
      fate: Whether the client cancels the request, or the fault of the body.
    """

    path: str
    body: dict[str, Any] | bytes
    fate: Fate = "good"

    @property
    def content(self) -> bytes:
        """The bytes of the body."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def data_url(seed: int, side: int = 48) -> str:
    """Returns a random picture as a data URL."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(stream, "png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def good_requests() -> list[HttpRequest]:
    """Returns one request of each kind that the API has, with fixed seeds."""

    def chat(text: str, *pictures: str, **fields: Any) -> HttpRequest:
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        return HttpRequest("chat/completions", {"messages": messages, "max_tokens": 24} | fields)

    modalities = {"modalities": ["text", "image"], "seed": 1}
    return [
        chat("What is in the picture ?", data_url(0)),
        chat("What is in the picture ?", data_url(1), stream=True),
        chat("How many shapes are there ?", stream=True, temperature=1.0, seed=7),
        chat("Describe both.", data_url(2), data_url(3), temperature=1.0, seed=8),
        chat("Draw a red circle.", **modalities),
        chat("Draw two blue stars.", stream=True, **modalities),
        HttpRequest("images/generations", {"prompt": "a red circle", "seed": 2}),
        HttpRequest("images/generations", {"prompt": "two stars", "seed": 3, "stream": True, "partial_images": 2}),
        HttpRequest("images/edits", {"prompt": "Make it blue.", "images": [{"image_url": data_url(4)}], "seed": 4}),
    ]


def bad_requests() -> list[HttpRequest]:
    """Returns malformed requests."""
    broken = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]
    return [
        HttpRequest("chat/completions", b'{"messages": [', "malformed"),
        HttpRequest("chat/completions", {"messages": []}, "malformed"),
        HttpRequest("chat/completions", {"messages": broken}, "malformed"),
        HttpRequest("images/generations", {"prompt": "x", "n": -1}, "malformed"),
        HttpRequest("images/edits", {"prompt": "Make it blue.", "images": [{"image_url": "/etc/passwd"}]}, "malformed"),
        HttpRequest("images/generations", {"prompt": "x", "model": "another"}, "malformed"),
    ]


def mixed_requests(count: int) -> list[HttpRequest]:
    """Returns requests of all fates."""
    good, bad = good_requests(), bad_requests()
    requests = []
    for number in range(count):
        block, place = divmod(number, 20)
        if place in (3, 13):
            kind = good[(2 * block + place // 10) % len(good)]
            requests.append(HttpRequest(kind.path, kind.body, "cancelled"))
        elif place in (8, 18):
            requests.append(bad[(2 * block + place // 10) % len(bad)])
        elif place == 10:
            requests.append(HttpRequest("chat/completions", b"x" * (MAX_BODY + 1 + block), "oversized"))
        else:
            requests.append(good[number % len(good)])
    return requests


async def answer(client: httpx.AsyncClient, request: HttpRequest) -> Answer:
    """Sends a request and returns its answer, streamed or not.

    Raises:
      httpx.HTTPError: The status is an error, or the connection broke.
      ValueError: See `read_answer`.
    """
    response = await client.post(f"/v1/{request.path}", content=request.content, headers=JSON)
    response.raise_for_status()
    return read_answer(response.text)


def read_answer(body: str) -> Answer:
    """Reads the body of a response, streamed or not.

    Raises:
      ValueError: The answer is an error or not complete.
    """
    lines = [line.removeprefix("data: ") for line in body.splitlines()]
    text, pictures, complete = "", [], False
    for event in (json.loads(line) for line in lines if line.startswith("{")):
        if "error" in event:
            raise ValueError(str(event["error"]))
        for choice in event.get("choices", ()):
            piece = choice.get("message") or choice["delta"]
            text += piece.get("content") or ""
            pictures += [image["image_url"]["url"].partition(",")[2] for image in piece.get("images", ())]
            complete |= choice["finish_reason"] is not None
        pictures += [item["b64_json"] for item in event.get("data", ())]
        complete |= "data" in event
        if str(event.get("type")).endswith(".completed"):
            pictures.append(event["b64_json"])
            complete = True
    if not complete:
        raise ValueError("The answer has no end.")
    return text.strip(), tuple(map(_digest, pictures))


def _digest(picture: str) -> str:
    pixels = Image.open(io.BytesIO(base64.b64decode(picture))).tobytes()
    return hashlib.sha256(pixels).hexdigest()[:16]
