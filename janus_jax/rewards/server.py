"""Serves a reward over HTTP (FastAPI), with the protocol of `janus_jax.rewards.http`."""

import base64
import binascii
import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fastapi
import numpy as np
from fastapi.responses import JSONResponse
from jaxtyping import UInt8
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.rewards.base import Reward, RewardFailed


@dataclass
class Item:
    """An image to score.

    Attributes:
      prompt: Its prompt.
      image: A file of the image in base64: PNG, or another format that Pillow reads.
      metadata: Further values of the prompt.
    """

    prompt: str
    image: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class ScoreRequest:
    """Images of equal size."""

    items: list[Item]


@dataclass
class ScoreAnswer:
    """The reward of each image."""

    rewards: list[float]


def make_app(reward: Reward, name: str) -> fastapi.FastAPI:
    """Returns the application of a reward service.

    The reward is called by one thread at a time. If it raises an exception, the status is 500 and the client tries
    again. If it raises `JanusError`, the status is 400 and the client stops.

    Args:
      reward: The reward (`make_reward`).
      name: Its name, shown by `/health`.
    """
    app = fastapi.FastAPI(title="Reward service")
    alone = threading.Lock()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "reward": name}

    # Not a coroutine, so that FastAPI runs it in a thread and `/health` answers meanwhile.
    @app.post("/score")
    def score(request: ScoreRequest) -> ScoreAnswer:
        images = [decode_image(item.image, number) for number, item in enumerate(request.items)]
        if len({image.shape for image in images}) > 1:
            raise JanusError("The images of a request differ in size; send images of equal size.")
        if not images:
            return ScoreAnswer([])
        prompts = [item.prompt for item in request.items]
        metadata: list[Mapping[str, Any]] = [item.metadata for item in request.items]
        with alone:
            return ScoreAnswer(reward(prompts, np.stack(images), metadata).tolist())

    @app.exception_handler(JanusError)
    def report(_: fastapi.Request, error: JanusError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 500 if isinstance(error, RewardFailed) else 400)

    return app


def decode_image(text: str, number: int) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes image number `number` of a request.

    Raises:
      JanusError: The text is not base64, or not an image.
    """
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            return np.asarray(image.convert("RGB"))
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise JanusError(f"The image of item {number} cannot be decoded ({error}); send a PNG in base64.") from error
