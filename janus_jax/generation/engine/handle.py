"""Events of one request, passed from the engine's thread to the thread of the caller."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from absl import logging
from PIL import Image

from janus_jax.generation.engine.requests import Event, Failed, Finished, Picture, TextPiece


@dataclass(frozen=True)
class Completion:
    """All that a request has generated.

    Attributes:
      text: The answer.
      images: The images, ordered by their numbers.
      finished: Last event of the request.
    """

    text: str
    images: list[Image.Image]
    finished: Finished


class Handle:
    """A submitted request. All methods may be called from any thread.

    Attributes:
      submitted: Time of the submission in seconds, as `time.monotonic` gives it.
      last_event: `Finished` or `Failed`; None before it was sent.
    """

    def __init__(self, on_event: Callable[[Event], object] | None = None) -> None:
        """Makes a handle.

        Args:
          on_event: Called in the engine's thread with each event, instead of `events`. It must return at once, as
            `loop.call_soon_threadsafe(queue.put_nowait, event)` does.
        """
        self.submitted = time.monotonic()
        self.last_event: Finished | Failed | None = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._on_event = on_event or self._events.put
        self._cancelled = threading.Event()

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Yields the events of the request. The last one is `Finished` or `Failed`. Call it once.

        Args:
          timeout: Maximum number of seconds until the next event.

        Raises:
          TimeoutError: The next event did not come in time. The request goes on; `cancel` ends it.
        """
        while True:
            try:
                event = self._events.get(timeout=timeout)
            except queue.Empty:
                raise TimeoutError(f"The engine returned no event within {timeout} seconds.") from None
            yield event
            if isinstance(event, Finished | Failed):
                return

    def result(self, timeout: float | None = None) -> Completion:
        """Waits until the request has finished and returns everything that it generated.

        Args:
          timeout: See `events`.

        Raises:
          Exception: The error of the request, if it failed.
          TimeoutError: See `events`.
        """
        pieces, pictures = [], {}
        for event in self.events(timeout):
            if isinstance(event, TextPiece):
                pieces.append(event.text)
            elif isinstance(event, Picture):
                pictures[event.number] = event.image
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Finished):
                return Completion("".join(pieces), [image for _, image in sorted(pictures.items())], event)
        raise AssertionError("the last event is Finished or Failed")

    def cancel(self) -> None:
        """Ends the request soon. Its last event is then `Finished` with the reason "cancelled"."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    @property
    def is_done(self) -> bool:
        """Whether the last event was sent."""
        return self.last_event is not None

    def send(self, event: Event) -> None:
        """Passes an event to the caller. Called by the engine."""
        if isinstance(event, Finished | Failed):
            self.last_event = event
        try:
            self._on_event(event)
        except Exception:
            logging.exception("The receiver of an event has failed; its request is cancelled.")
            self.cancel()
