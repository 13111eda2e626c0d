"""Base class of requests in progress."""

from janus_jax.generation.engine.groups import Group
from janus_jax.generation.engine.handle import Handle
from janus_jax.generation.engine.requests import Failed, Finished, FinishReason, Usage


class Job:
    """A request in progress.

    Attributes:
      handle: Receives the events.
      groups: Groups that wait for rows, or have rows.
      usage: Tokens so far.
    """

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.groups: list[Group] = []
        self.usage = Usage()

    @property
    def is_done(self) -> bool:
        """Whether the last event was sent."""
        return self.handle.is_done

    def finish(self, reason: FinishReason) -> None:
        """Sends the last event of a request that did not fail."""
        if not self.is_done:
            self.handle.send(Finished(reason, self.usage))

    def fail(self, error: Exception) -> None:
        """Sends the last event of a request that failed."""
        if not self.is_done:
            self.handle.send(Failed(error))
