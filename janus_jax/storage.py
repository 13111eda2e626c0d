"""Writes files and folders atomically, on disks and buckets; locks files; and detects full disks."""

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from janus_jax.buckets import bucket_errors, check_bucket, is_remote, is_unavailable, upload_folder, write_object
from janus_jax.errors import JanusError, RunStopped, StorageFull, StorageUnavailable

CHECK_DISK = "what was saved before is intact, check the disk or its mount, and repeat the command."
"""Advice in the messages about failed disks."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_MESSAGES = tuple(os.strerror(number) for number in _FULL)
_QUOTED_PATH = re.compile(r"[\"'`](/[^\"'`]+)[\"'`]")
_FAILED = (errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ENXIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT)
_FAILED_MESSAGES = tuple(os.strerror(number) for number in (errno.EIO, errno.ENODEV, errno.EREMOTEIO, errno.ESTALE))
_USER_ERRORS = (
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error or one of its causes is ENOSPC or EDQUOT, judging by the errno or by the message."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL or any(message in str(error) for message in _FULL_MESSAGES):
            return True
        error = error.__cause__ or error.__context__
    return False


def failed_disk(error: BaseException | None) -> str | None:
    """Returns a phrase if an error or one of its causes is an I/O error, such as one of a broken disk or a lost mount.

    The phrase has the file, if it is known, and the reason of the system. Libraries report some errors by their message
    only.
    """
    while error is not None:
        reason = next((message for message in _FAILED_MESSAGES if message in str(error)), None)
        if isinstance(error, OSError) and error.errno in _FAILED:
            reason = error.strerror
        if reason is not None:
            file = getattr(error, "filename", None) or next(iter(_QUOTED_PATH.findall(str(error))), None)
            return f"{file}: {reason}" if file else reason
        error = error.__cause__ or error.__context__
    return None


def hide_storage_traces() -> Callable[[], None]:
    """Suppresses the tracebacks of threads, tasks and destructors for a full or failed disk or a bucket that does
    not answer.

    The caller reports these errors.

    Returns:
      Function that restores the previous state.
    """
    stack = contextlib.ExitStack()

    def is_other(record: logging.LogRecord) -> bool:
        return not _is_reported(record.exc_info[1] if record.exc_info else None)

    # Filters of loggers do not apply to their children, so those of the handlers are needed, too.
    loggers = map(logging.getLogger, ("absl", "asyncio", "concurrent.futures"))
    for filterer in (*loggers, *logging.getLogger().handlers, *filter(None, [logging.lastResort])):
        filterer.addFilter(is_other)
        stack.callback(filterer.removeFilter, is_other)
    for owner, name in ((threading, "excepthook"), (sys, "unraisablehook"), (sys, "excepthook")):
        hook = getattr(owner, name)
        setattr(owner, name, functools.partial(_call_unless_reported, hook))
        stack.callback(setattr, owner, name, hook)
    return stack.close


def _is_reported(error: BaseException | None) -> bool:
    return is_disk_full(error) or is_unavailable(error) or failed_disk(error) is not None


def _call_unless_reported(hook: Callable[..., object], *arguments: Any) -> None:
    # sys.excepthook receives the type, the value and the traceback of an exception, the others an object with these.
    is_uncaught = len(arguments) > 1
    error = arguments[1] if is_uncaught else arguments[0].exc_value
    is_in_thread = threading.current_thread() is not threading.main_thread()
    is_expected = _is_reported(error) and (is_in_thread or not is_uncaught)
    # Orbax closes its event loop at the first failed write. TensorStore's threads cannot report the other writes to it.
    if not is_expected and not (is_in_thread and str(error) == "Event loop is closed"):
        hook(*arguments)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager that turns errors in writing `path` into `RunStopped` or `JanusError`.

    Raises:
      StorageFull: The disk or quota is full.
      StorageUnavailable: The path is on a bucket that does not answer, or on a disk that fails.
      JanusError: The path cannot be written: permissions, a file where a folder is needed, a name that is too long.
    """
    try:
        with bucket_errors(path):
            yield
    except (JanusError, RunStopped):
        raise
    except Exception as error:
        if is_disk_full(error):
            message = f"{path} cannot be written, the disk is full; free some space and run the command again."
            raise StorageFull(message) from error
        if isinstance(error, OSError) and error.errno in _USER_ERRORS:
            message = f"{path} cannot be written ({error.strerror}); choose another path or fix this one."
            raise JanusError(message) from error
        if reason := failed_disk(error):
            raise StorageUnavailable(f"{path} cannot be written ({reason}); {CHECK_DISK}") from error
        raise


@contextlib.contextmanager
def atomic_file(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path for the block to write. The temporary file replaces `path` if the block succeeds.

    If the block fails, the temporary file is removed. The content is flushed to the disk before the file is renamed, so
    a killed process or a power cut leaves either the old file or the new one.

    Args:
      path: The file to write. An existing file is replaced.
      scratch: Folder of the temporary file, on the same disk. Default: the folder of `path`.
    """
    temporary = (scratch or path.parent) / f".{path.name}.incomplete-{os.getpid()}"
    try:
        yield temporary
        with writing(path):
            _sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file or an object of a bucket atomically. Creates its folder.

    Raises:
      JanusError, RunStopped: See `writing`.
    """
    if is_remote(path):
        write_object(path, content)
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file or object atomically. Creates its folder.

    Raises:
      JanusError, RunStopped: See `writing`.
    """
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields a temporary folder for the block to fill. The folder is renamed to `target` if the block succeeds.

    If the block fails, the folder is removed. A killed process leaves a folder named `.NAME.incomplete-HOST-PID`, which
    the next run for the same target on the same host removes.

    A target on a bucket is written to a local folder and uploaded if the block succeeds, config.json last.

    Raises:
      JanusError: The target exists, or its parent does not exist or cannot be written.
      StorageFull: The disk is full.
      StorageUnavailable: The bucket does not answer.
    """
    if is_remote(target):
        check_bucket(target)
        if target.exists():
            raise JanusError(f"{target} exists; give a folder that does not exist, or remove it.")
        with tempfile.TemporaryDirectory() as staged:
            yield Path(staged)
            upload_folder(Path(staged), target)
        return
    if "\0" in str(target):
        raise JanusError(f"{str(target)!r} is not a valid folder name; choose another one.")
    parent = target.absolute().parent
    temporary = parent / f".{target.name}.incomplete-{platform.node()}-{os.getpid()}"
    with writing(target):
        if target.exists() or target.is_symlink():
            raise JanusError(f"{target} exists; give a folder that does not exist, or remove it.")
        if not parent.is_dir():
            raise JanusError(f"{parent} does not exist; create it or choose another folder.")
        _remove_abandoned(target)
        temporary.mkdir()
    try:
        with writing(target):
            yield temporary
            _sync_folder(temporary)
            # Fails if another process has created and filled the target.
            temporary.rename(target)
            _sync(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Creates a folder, checks that files can be written to it, and yields its path.

    If the block leaves the folder empty, the folder is removed, and so are the parents that were created for it.

    Raises:
      JanusError, RunStopped: See `writing`.
    """
    if is_remote(path):
        check_bucket(path)
        yield path
        return
    created: list[Path] = []
    try:
        with writing(path):
            created = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
        yield path
    finally:
        for folder in created:
            with contextlib.suppress(OSError):  # Not empty.
                folder.rmdir()


@contextlib.contextmanager
def exclusive_lock(path: Path, output: Path) -> Iterator[None]:
    """Locks a file until the block ends or the process dies. On a bucket or file system without locks, does nothing.

    Args:
      path: The file to lock; created if missing.
      output: The folder that the lock protects, for the error message.

    Raises:
      JanusError: Another process holds the lock, or the file cannot be written.
    """
    if is_remote(path):
        yield
        return
    with contextlib.ExitStack() as stack:
        with writing(path):
            lock = stack.enter_context(path.open("a"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JanusError(f"{output} is being written by another run; wait for it or stop it.") from None
        except OSError:
            pass
        yield


def _remove_abandoned(target: Path) -> None:
    # Whether a process of another host is alive is unknown, so its folder stays.
    prefix = f".{target.name}.incomplete-{platform.node()}-"
    for folder in target.absolute().parent.iterdir():
        process = folder.name.removeprefix(prefix)
        if folder.name.startswith(prefix) and process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    # Runs in containers may all have the same process id, so a folder with this id is from an earlier run.
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _sync_folder(folder: Path) -> None:
    paths = [Path(root) / name for root, folders, files in os.walk(folder) for name in (*folders, *files)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_sync, [*paths, folder]))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
