"""A folder that appears when it is complete, and not before."""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from janus_jax.errors import JanusError


@contextlib.contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `target`, which takes its name when the block ends well and goes when it fails.

    A killed process leaves a folder named `.NAME.incomplete-HOST-PID`, which no one takes for a checkpoint and which
    the next run for the same target removes.

    Raises:
      JanusError: the target exists, or its parent does not or cannot be written.
    """
    parent = target.absolute().parent
    try:
        temporary = _start(target, parent)
    except OSError as error:
        raise JanusError(f"{target} cannot be written ({error.strerror}); give another place.") from error
    try:
        yield temporary
        _flush(temporary)
        # Renaming onto a folder that someone made meanwhile fails unless it is empty.
        temporary.rename(target)
        _sync(parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise JanusError(f"{target} could not be written ({error.strerror or error}).") from error
        raise


def _start(target: Path, parent: Path) -> Path:
    if "\0" in str(target):
        raise JanusError(f"{str(target)!r} is no name of a folder; give another place.")
    if target.exists() or target.is_symlink():
        raise JanusError(f"{target} exists; give a folder that does not, or remove it.")
    if not parent.is_dir():
        raise JanusError(f"{parent} does not exist; make it, or give another place.")
    _remove_abandoned(target)
    temporary = parent / f".{target.name}.incomplete-{platform.node()}-{os.getpid()}"
    temporary.mkdir()
    return temporary


def _remove_abandoned(target: Path) -> None:
    # Another machine's may still be at work on it, and its process cannot be asked from here.
    start = f".{target.name}.incomplete-{platform.node()}-"
    for left in target.absolute().parent.iterdir():
        process = left.name.removeprefix(start)
        if left.name.startswith(start) and process.isdigit() and not _alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    # In a container every run may have the same number.
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _flush(folder: Path) -> None:
    """Everything below the folder onto the disk, so that a rename that survives a power cut finds its files."""
    paths = [Path(root) / name for root, folders, files in os.walk(folder) for name in (*folders, *files)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_sync, [*paths, folder]))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
