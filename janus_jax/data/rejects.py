"""Rejected records: reasons, counts, and the limit at which a run stops."""

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
    """Why a record is rejected. Rejections are counted by reason; a message gives the details."""

    MALFORMED = "malformed"
    """Unreadable: invalid JSON or UTF-8, or a value of the wrong type."""
    MISSING_FIELD = "missing_field"
    EMPTY_TEXT = "empty_text"
    """A blank document or caption, or a conversation without an answer."""
    NO_IMAGE = "no_image"
    """The image field is empty, or the sample has no image."""
    MISSING_FILE = "missing_file"
    """The image file does not exist or is outside the image folder."""
    BAD_IMAGE = "bad_image"
    """Truncated, corrupt, or not an image."""
    IMAGE_TOO_LARGE = "image_too_large"
    """Too many pixels or bytes, for example a decompression bomb."""
    IMAGE_COUNT = "image_count"
    """The numbers of images and of image placeholders differ."""
    BAD_CONVERSATION = "bad_conversation"
    """No turns, or a turn with an unknown role."""
    SPECIAL_TOKEN = "special_token"
    """The text contains a special token of the model."""
    TOO_LONG = "too_long"
    WRONG_TASK = "wrong_task"
    """The record has another task than its component."""
    BAD_IMAGE_TOKENS = "bad_image_tokens"
    """Precomputed image tokens of another number than the model's, or negative ones."""
    BAD_IMAGE_LATENTS = "bad_image_latents"
    """Precomputed latents of another number than the model's, or not finite."""
    NO_TARGETS = "no_targets"
    """No position of the example is supervised."""
    DAMAGED_FILE = "damaged_file"
    """The rest of an archive is unreadable. Counts once, for any number of lost records."""


class RejectedRecord(Exception):
    """Raised for a record that cannot be used; the message is one sentence."""

    def __init__(self, reason: RejectReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Rejection:
    """Result of a record that gave no example.

    Attributes:
      example_id: Id of the record, see `Example`; its index if the key is unreadable.
      reason: Why the record was rejected.
      detail: One sentence for the log.
    """

    example_id: str
    reason: RejectReason
    detail: str


@dataclass
class RejectCounter:
    """Counts accepted and rejected records and stops the run if too many recent ones are rejected.

    Attributes:
      max_share: Largest share of the recent records that may be rejected, in [0, 1).
      window: Number of recent records.
      read: Records so far, including rejected ones.
      rejected: Rejected records by reason.
      recent: Values of `read` at the recent rejections.
    """

    max_share: float
    window: int
    read: int = 0
    rejected: Counter[RejectReason] = field(default_factory=Counter)
    recent: deque[int] = field(default_factory=deque)
    _logged_at: float = -math.inf

    def accept(self) -> None:
        """Counts an accepted record."""
        self._count()

    def reject(self, rejection: Rejection) -> None:
        """Counts a rejected record and logs at most once a minute.

        Raises:
          JanusError: More than `max_share` of the recent records are rejected.
        """
        self._count()
        self.rejected[rejection.reason] += 1
        self.recent.append(self.read)
        now = time.monotonic()
        if now - self._logged_at >= _SECONDS_BETWEEN_LOGS:
            self._logged_at = now
            logging.warning(
                "Rejected %d of %d records so far (%s); the last is %s: %s",
                self.rejected.total(),
                self.read,
                self._reasons(),
                rejection.example_id,
                rejection.detail,
            )
        if len(self.recent) > self.max_share * self.window:
            raise JanusError(
                f"{len(self.recent)} of the last {min(self.read, self.window)} records were rejected, more than "
                f"StreamConfig.max_rejected = {self.max_share} allows (in total {self._reasons()}; the last is "
                f"{rejection.example_id}: {rejection.detail}); fix the data or raise the limit."
            )

    def get_state(self) -> dict[str, Any]:
        """Returns the counts as JSON values."""
        return {
            "read": self.read,
            "rejected": {reason.value: self.rejected[reason] for reason in RejectReason if reason in self.rejected},
            "recent": list(self.recent),
        }

    def with_state(self, state: dict[str, Any]) -> Self:
        """Returns a counter with the same limits and the counts that `get_state` returned."""
        return type(self)(
            self.max_share,
            self.window,
            state["read"],
            Counter({RejectReason(name): count for name, count in state["rejected"].items()}),
            deque(state["recent"]),
        )

    def _reasons(self) -> str:
        return ", ".join(f"{reason.value}: {count}" for reason, count in self.rejected.most_common())

    def _count(self) -> None:
        self.read += 1
        while self.recent and self.recent[0] <= self.read - self.window:
            self.recent.popleft()
