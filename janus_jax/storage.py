"""A disk that is full, told from all else that can go wrong with a file."""

import contextlib
import errno
import os
from collections.abc import Iterator

from janus_jax.errors import StorageFull

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_ROOM_WORDS = tuple(os.strerror(number) for number in _NO_ROOM)


def is_full(error: BaseException | None) -> bool:
    """Whether an error comes from a disk or a quota that is full; libraries that write for us tell it by words."""
    while error is not None:
        if getattr(error, "errno", None) in _NO_ROOM or any(words in str(error) for words in _NO_ROOM_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def writing(place: object) -> Iterator[None]:
    """Makes a full disk a reason to stop that names the file or folder.

    Raises:
      StorageFull: the disk is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StorageFull) or not is_full(error):
            raise
        raise StorageFull(f"{place} cannot be written, the disk is full; make room and call again.") from error
