"""The few shapes that sampling is compiled for, so that a new prompt finds its program ready."""

# Slots by which a cache grows. A step reads all slots: larger reads more that is empty, smaller compiles more often.
CACHE_STEP = 256


def bucket_length(length: int) -> int:
    """The padded length of a prompt: steps of 32 places while short, then of 64, then of 256."""
    step = 32 if length <= 128 else 64 if length <= 1024 else 256
    return round_up(length, step)


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below the number."""
    return -(-number // multiple) * multiple
