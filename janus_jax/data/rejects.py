"""Records that cannot be used: told apart by reason, counted, logged once in a while, and too many of them refused."""

import enum
import math
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Self

from absl import logging

from janus_jax.errors import JanusError

_SECONDS_BETWEEN_LOGS = 60.0


class RejectReason(enum.Enum):
    """Why a record is rejected: the closed list that is counted; the sentence beside it tells the particulars."""

    MALFORMED = "malformed"
    """It cannot be read: bad JSON or UTF-8, or a value of the wrong type."""
    MISSING_FIELD = "missing_field"
    EMPTY_TEXT = "empty_text"
    """A blank document or caption, or a conversation without an answer."""
    NO_IMAGE = "no_image"
    """None where one is promised: the field is empty, or the sample has no picture."""
    MISSING_FILE = "missing_file"
    """The image's file does not exist, or lies outside the folder of images."""
    BAD_IMAGE = "bad_image"
    """Truncated, corrupt, or no image at all."""
    IMAGE_TOO_LARGE = "image_too_large"
    """More pixels or bytes than are read: decompression bombs among them."""
    IMAGE_COUNT = "image_count"
    """Images and the places for them differ in number."""
    BAD_CONVERSATION = "bad_conversation"
    """Unknown roles, or no turns."""
    SPECIAL_TOKEN = "special_token"
    """The text spells a token that means something to the model."""
    TOO_LONG = "too_long"
    WRONG_TASK = "wrong_task"
    """It is not of the task that its component of a mixture is to teach."""
    BAD_IMAGE_TOKENS = "bad_image_tokens"
    """Its image ids are none that the model has, or not as many as its images have places."""
    BAD_IMAGE_LATENTS = "bad_image_latents"
    """Its latents are not as many as the model's images have, or no numbers."""
    NO_TARGETS = "no_targets"
    """None of its places is supervised."""
    DAMAGED_FILE = "damaged_file"
    """The rest of an archive cannot be read: one rejection, however many records were lost."""


class RejectedRecord(Exception):
    """A record that will not do, with its reason and a sentence."""

    def __init__(self, reason: RejectReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class Rejection:
    """What stands in the place of a sample whose record gave none.

    Attributes:
      example_id: of the record, as in `Example`; its number where the key cannot be read.
      reason: why.
      detail: a sentence for the log.
    """

    example_id: str
    reason: RejectReason
    detail: str


@dataclass
class RejectCounter:
    """Counts what is used and what is rejected.

    Attributes:
      most: the largest share of the recent records that may be rejected, in [0, 1).
      window: how many records are recent.
      read: records so far, rejected ones included.
      rejected: how many, by reason.
      recent: which of the recent records were rejected, as counts of `read`.
    """

    most: float
    window: int
    read: int = 0
    rejected: Counter[RejectReason] = field(default_factory=Counter)
    recent: deque[int] = field(default_factory=deque)
    _logged_at: float = -math.inf

    def accept(self) -> None:
        """Counts a record that gave a sample."""
        self._count()

    def reject(self, rejected: Rejection) -> None:
        """Counts one that gave none.

        Raises:
          JanusError: there are more of them among the recent records than are allowed.
        """
        self._count()
        self.rejected[rejected.reason] += 1
        self.recent.append(self.read)
        now = time.monotonic()
        if now - self._logged_at >= _SECONDS_BETWEEN_LOGS:
            self._logged_at = now
            logging.warning(
                "Rejected %d of %d records so far (%s); the last is %s: %s",
                self.rejected.total(),
                self.read,
                self.reasons,
                rejected.example_id,
                rejected.detail,
            )
        if len(self.recent) > self.most * self.window:
            raise JanusError(
                f"{len(self.recent)} of the last {min(self.read, self.window)} records were rejected, more than the "
                f"share of {self.most} that StreamConfig.max_rejected allows (in all: {self.reasons}; the last is "
                f"{rejected.example_id}: {rejected.detail}); mend the data or allow more."
            )

    @property
    def reasons(self) -> str:
        """The counts in words, most frequent reason first."""
        return ", ".join(f"{reason.value}: {count}" for reason, count in self.rejected.most_common())

    def get_state(self) -> dict[str, Any]:
        """The counts as json knows them."""
        return {
            "read": self.read,
            "rejected": {
                reason.value: count for reason, count in sorted(self.rejected.items(), key=lambda i: i[0].value)
            },
            "recent": list(self.recent),
        }

    def with_state(self, state: dict[str, Any]) -> Self:
        """A ledger of the same limits that goes on from `get_state`'s counts."""
        return type(self)(
            self.most,
            self.window,
            state["read"],
            Counter({RejectReason(name): count for name, count in state["rejected"].items()}),
            deque(state["recent"]),
        )

    def _count(self) -> None:
        self.read += 1
        while self.recent and self.recent[0] <= self.read - self.window:
            self.recent.popleft()
