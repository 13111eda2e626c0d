"""Events of the engine in the server's event loop."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

import fastapi
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from janus_jax.generation.engine import (
    Engine,
    Event,
    Failed,
    Finished,
    Handle,
    Picture,
    Request,
    TextPiece,
)
from janus_jax.serving.errors import ApiError, failed
from janus_jax.serving.metrics import RequestTimer

_POLL_SECONDS = 0.5
"""Time between two looks at whether a client is still connected."""


@dataclass(eq=False)
class EventStream:
    """Events of one submitted request.

    Attributes:
      handle: Handle of the request.
      queue: Its events.
      deadline: Time of the event loop at which the request is cancelled.
      timer: Measures the request.
    """

    handle: Handle
    queue: "asyncio.Queue[Event]"
    deadline: float
    timer: RequestTimer

    async def events(self, client: fastapi.Request | None = None) -> AsyncGenerator[Event]:
        """Yields the events of the request; cancels it if the caller stops.

        Args:
          client: The HTTP request of a client that waits for the whole answer. The request is cancelled when the client
            disconnects. The server itself ends an answer that is streamed.

        Raises:
          ApiError: The request failed or took too long, or the client disconnected.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                remaining = self.deadline - loop.time()
                if remaining <= 0:
                    raise ApiError(504, "The request took longer than the server allows.", code="timeout")
                try:
                    event = await asyncio.wait_for(self.queue.get(), min(_POLL_SECONDS, remaining))
                except TimeoutError:
                    if client is not None and await client.is_disconnected():
                        raise ApiError(499, "The client closed the connection.", code="disconnected") from None
                    continue
                self.timer.saw(event)
                if isinstance(event, Failed):
                    raise failed(event.error)
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.end()

    def end(self) -> None:
        """Cancels the request, unless it has finished."""
        self.handle.cancel()
        self.timer.end()


class EventResponse(StreamingResponse):
    """A streamed answer. Its request ends with it, also if the client disconnects before the first event."""

    def __init__(self, chunks: AsyncIterator[str], stream: EventStream) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.end()


@dataclass(frozen=True)
class Answer:
    """A whole answer: its pieces of text and its pictures in the order of their events, and its last event."""

    pieces: list[TextPiece | Picture]
    finished: Finished

    @property
    def pictures(self) -> list[Picture]:
        """The pictures by their numbers."""
        found = [piece for piece in self.pieces if isinstance(piece, Picture)]
        return sorted(found, key=lambda picture: picture.number)


async def submit(engine: Engine, request: Request, timeout: float, timer: RequestTimer) -> EventStream:
    """Submits a request. It is checked and tokenized in a thread, so that other requests go on.

    If the caller is cancelled meanwhile, the request is cancelled.

    Raises:
      JanusError, Overloaded, EngineClosed: See `Engine.submit`.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Event] = asyncio.Queue()

    def receive(event: Event) -> None:
        # After the loop has ended nobody waits for the event.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, event)

    deadline = loop.time() + timeout
    submission = asyncio.ensure_future(asyncio.to_thread(engine.submit, request, receive))
    try:
        handle = await asyncio.shield(submission)
    except asyncio.CancelledError:
        submission.add_done_callback(_cancel)
        raise
    return EventStream(handle, queue, deadline, timer)


def _cancel(submission: "asyncio.Future[Handle]") -> None:
    if not submission.cancelled() and submission.exception() is None:
        submission.result().cancel()


async def collect(stream: EventStream, client: fastapi.Request) -> Answer:
    """Waits for the end of a request, and returns its text and pictures.

    Raises:
      ApiError: See `EventStream.events`.
    """
    pieces: list[TextPiece | Picture] = []
    async with contextlib.aclosing(stream.events(client)) as events:
        async for event in events:
            if isinstance(event, TextPiece | Picture):
                pieces.append(event)
            elif isinstance(event, Finished):
                return Answer(pieces, event)
    raise AssertionError("the last event is Finished")
