"""State that all routes of a server share."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import fastapi
from absl import logging

from janus_jax.generation.engine import Engine, Request
from janus_jax.serving.errors import ApiError
from janus_jax.serving.images import PictureStore, TokenStore
from janus_jax.serving.metrics import Metrics
from janus_jax.serving.options import ServerOptions
from janus_jax.serving.streams import EventStream, submit

_KEPT_TOKENS = 4096
"""Number of pictures of conversations whose image tokens are kept, about 10 MB."""


@dataclass(frozen=True, eq=False)
class Service:
    """An engine with the options of a server.

    Attributes:
      engine: The engine.
      name: Name of the model.
      side: Side of its pictures in pixels.
      options: Options of the server.
      metrics: Metrics of the server.
      pictures: Pictures of answers that clients fetch.
      tokens: Image tokens of pictures of conversations.
      created: Time of the start.
    """

    engine: Engine
    name: str
    side: int
    options: ServerOptions
    metrics: Metrics
    pictures: PictureStore
    tokens: TokenStore = field(default_factory=lambda: TokenStore(_KEPT_TOKENS))
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, request: fastapi.Request) -> "Service":
        """Returns the service of the app that received a request."""
        return cast(Service, request.app.state.service)

    def check_model(self, name: str | None) -> None:
        """Checks the model that a client asks for.

        Raises:
          ApiError: This server has another model.
        """
        if name not in (None, self.name):
            message = f"The model {name!r} does not exist; this server has {self.name}."
            raise ApiError(404, message, param="model", code="model_not_found")

    async def submit(self, request: Request, route: str) -> EventStream:
        """Submits a request to the engine. See `streams.submit`."""
        return await submit(self.engine, request, self.options.timeout, self.metrics.timer(route))

    def log(self, route: str, texts: Sequence[str]) -> None:
        """Logs a request; its texts only if the options ask for it."""
        if self.options.log_prompts:
            logging.info("%s: %s", route, texts)
