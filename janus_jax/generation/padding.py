"""Padded lengths. There are few, so that most prompts find their program compiled."""

CACHE_STEP = 256
"""Slots by which a cache grows. Each step reads all slots: larger steps read more empty slots, smaller compile more."""


def bucket_length(length: int) -> int:
    """Rounds the length of a prompt up: to a multiple of 32 up to 128, of 64 up to 1024, of 256 beyond."""
    step = 32 if length <= 128 else 64 if length <= 1024 else 256
    return round_up(length, step)


def round_up(number: int, multiple: int) -> int:
    """Returns the smallest multiple that is not below the number."""
    return -(-number // multiple) * multiple
