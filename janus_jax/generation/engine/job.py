"""Base classes of requests in progress."""

import dataclasses
from typing import TYPE_CHECKING

from PIL import Image

from janus_jax.generation.engine.groups import Group
from janus_jax.generation.engine.handle import Handle
from janus_jax.generation.engine.requests import Failed, Finished, FinishReason, PartialPicture, Picture, Usage

if TYPE_CHECKING:
    from janus_jax.generation.engine.pictures import PendingPicture


class Job:
    """A request in progress.

    Attributes:
      handle: Receives the events.
      groups: All groups of the request so far.
      usage: Tokens so far, without cached ones.
    """

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.groups: list[Group] = []
        self.usage = Usage()
        self._new: list[Group] = []

    @property
    def is_done(self) -> bool:
        """Whether the last event was sent."""
        return self.handle.is_done

    def add(self, group: Group) -> None:
        """Adds a group, which waits for rows."""
        self.groups.append(group)
        self._new.append(group)

    def take_new(self) -> list[Group]:
        """Returns the groups that were added since the last call."""
        new, self._new = self._new, []
        return new

    def finish(self, reason: FinishReason) -> None:
        """Sends the last event of a request that did not fail."""
        if not self.is_done:
            cached = self.groups[0].num_cached if self.groups else 0
            self.handle.send(Finished(reason, dataclasses.replace(self.usage, cached_tokens=cached)))

    def fail(self, error: Exception) -> None:
        """Sends the last event of a request that failed."""
        if not self.is_done:
            self.handle.send(Failed(error))


class ImageJob(Job):
    """A request that generates image tokens.

    Attributes:
      pending: Image tokens to decode.
    """

    def __init__(self, handle: Handle) -> None:
        super().__init__(handle)
        self.pending: list[PendingPicture] = []

    def send_picture(self, pending: "PendingPicture", image: Image.Image) -> None:
        """Sends a decoded image, and continues after a finished one."""
        if self.is_done:
            return
        if pending.progress < 1:
            self.handle.send(PartialPicture(pending.number, image, pending.progress))
            return
        self.handle.send(Picture(pending.number, image, pending.tokens))
        self.continue_after(pending, image)

    def continue_after(self, pending: "PendingPicture", image: Image.Image) -> None:
        """Continues after a finished image."""
        raise NotImplementedError
