"""Rejected records: reasons, counts, and the limit at which a run stops."""

import enum
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from absl import logging

from janus_jax.errors import JanusError

_SECONDS_BETWEEN_LOGS = 60.0


class RejectReason(enum.Enum):
    """Why a record is rejected. Rejections are counted by reason; their messages give the details."""

    MALFORMED = "malformed"
    """Unreadable: invalid JSON or UTF-8, or a value of the wrong type."""
    MISSING_FIELD = "missing_field"
    EMPTY_TEXT = "empty_text"
    """A blank document or caption, or a conversation without an answer."""
    NO_IMAGE = "no_image"
    """The image field is empty, or the sample has no image."""
    MISSING_FILE = "missing_file"
    """The image file does not exist or is outside the image folder."""
    REMOTE_IMAGE = "remote_image"
    """The image is an address on the web."""
    BAD_IMAGE = "bad_image"
    """Truncated, corrupt, or not an image."""
    IMAGE_TOO_LARGE = "image_too_large"
    """Too many pixels or bytes, for example a decompression bomb."""
    IMAGE_COUNT = "image_count"
    """The numbers of images and of image placeholders differ."""
    BAD_CONVERSATION = "bad_conversation"
    """No turns, or a turn with an unknown role."""
    UNSUPPORTED_FIELD = "unsupported_field"
    """A field has content that the record cannot hold, such as a video."""
    SPECIAL_TOKEN = "special_token"
    """The text contains a special token of the model."""
    TOO_LONG = "too_long"
    WRONG_TASK = "wrong_task"
    """The task of the record differs from the task of its component."""
    BAD_IMAGE_TOKENS = "bad_image_tokens"
    """The number of precomputed image tokens differs from the model's, or a token is negative."""
    BAD_IMAGE_LATENTS = "bad_image_latents"
    """The number of precomputed latent values differs from the model's, or a value is not finite."""
    NO_TARGETS = "no_targets"
    """No position of the example is a target."""
    DAMAGED_FILE = "damaged_file"
    """The rest of an archive is unreadable. Counted once, whatever the number of lost records."""


class RejectedRecord(Exception):
    """The record cannot be used. The message is one sentence."""

    def __init__(self, reason: RejectReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Rejection:
    """Describes a rejected record.

    Attributes:
      example_id: Id of the record as in `Example`; contains the record's index if its key is unreadable.
      reason: Why the record was rejected.
      detail: One sentence for the log.
    """

    example_id: str
    reason: RejectReason
    detail: str


@dataclass
class RejectCounter:
    """Counts accepted and rejected records. Raises if too many records of a window are rejected.

    Attributes:
      max_share: Largest share of the records of a window that may be rejected, in [0, 1).
      window: Length of a window: the first `window` records, the next `window` records, and so on.
      read: Records so far, including rejected ones.
      rejected: Rejected records by reason.
      rejected_in_window: Rejected records of the current window.
    """

    max_share: float
    window: int
    read: int = 0
    rejected: Counter[RejectReason] = field(default_factory=Counter)
    rejected_in_window: int = 0
    _logged_at: float = -math.inf

    @property
    def max_in_a_row(self) -> int:
        """A number of rejected records in a row that always raises, also if they are in two windows."""
        return 2 * int(self.max_share * self.window) + 2

    def accept(self) -> None:
        """Counts an accepted record."""
        self._count()

    def reject(self, rejection: Rejection) -> None:
        """Counts a rejected record and logs it. Logs at most once a minute.

        Raises:
          JanusError: More than `max_share` of the records of a window are rejected.
        """
        self._count()
        self.rejected[rejection.reason] += 1
        self.rejected_in_window += 1
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
        if self.rejected_in_window > self.max_share * self.window:
            raise JanusError(
                f"{self.rejected_in_window} of the last {(self.read - 1) % self.window + 1} records were rejected, "
                f"more than max_rejected = {self.max_share} of {self.window} allows (in total {self._reasons()}; the "
                f"last is {rejection.example_id}: {rejection.detail}); fix the data or raise the limit."
            )

    def get_state(self) -> dict[str, Any]:
        """Returns the counts as JSON values. The state always has the same fields."""
        return {
            "read": self.read,
            "rejected": {reason.value: self.rejected[reason] for reason in RejectReason},
            "rejected_in_window": self.rejected_in_window,
        }

    def with_state(self, state: dict[str, Any]) -> Self:
        """Returns a counter with this counter's limits and the counts in `state`, as returned by `get_state`."""
        rejected = {RejectReason(name): count for name, count in state["rejected"].items() if count}
        return type(self)(self.max_share, self.window, state["read"], Counter(rejected), state["rejected_in_window"])

    def _reasons(self) -> str:
        return ", ".join(f"{reason.value}: {count}" for reason, count in self.rejected.most_common())

    def _count(self) -> None:
        if self.read % self.window == 0:
            self.rejected_in_window = 0
        self.read += 1
