"""Padded lengths of prompts and caches. Few distinct lengths mean few compiled programs."""

CACHE_STEP = 256
"""Number of slots by which a cache grows.

A decode step reads all slots, empty ones too. A larger number means more empty slots, a smaller number more compiled
programs.
"""


def bucket_length(length: int) -> int:
    """Returns the padded length of a prompt: a multiple of 32 up to 128, of 64 up to 1024, and of 256 above."""
    step = 32 if length <= 128 else 64 if length <= 1024 else 256
    return round_up(length, step)


def round_up(number: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is not below `number`."""
    return -(-number // multiple) * multiple
