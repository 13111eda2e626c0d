"""Google Cloud Storage: paths that start with gs://, their errors, and copies between a bucket and the local disk.

An object appears when it is complete and is replaced as a whole, so writing one is atomic. There are no renames, no
appends and no locks. Code that needs a local file works on a copy: `local_copy` reads a folder through a cache,
`staged_folder` uploads a new folder, and `Mirror` uploads files that grow.
"""

import contextlib
import fcntl
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

from janus_jax.errors import JanusError, RunStopped, StorageUnavailable
from janus_jax.extras import require

_log = logging.getLogger(__name__)

RETRY_SECONDS = 300.0
"""Time for which a request to a bucket that answers with errors is repeated."""

_SCHEME = "gs://"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 32.0  # seconds
_CONNECTIONS = 8
_MAX_REASON = 160
_COMPLETE = "config.json"
"""File of a model folder that is uploaded last, so that a folder with it is complete."""
_INDEX = ".objects.json"
_CHECKSUMS = ("crc32c", "md5Hash")

T = TypeVar("T")
StrPath = str | os.PathLike[str]


def is_remote(path: StrPath) -> bool:
    """Returns whether a path is on a bucket."""
    return os.fspath(path).startswith(_SCHEME)


def as_path(path: StrPath) -> Path:
    """Returns a path with the methods of `pathlib.Path` for a local path or a gs:// URL.

    `pathlib.Path` itself would turn gs:// into a local folder.

    Raises:
      JanusError: The URL has another scheme or names no bucket, or the package for buckets is not installed.
    """
    text = os.fspath(path)
    url = _URL.match(text)
    if url is None:
        return Path(path)
    if not is_remote(text):
        raise JanusError(
            f"{text} starts with {url[1]}://, and only gs:// is supported; mount the bucket as a folder (see "
            f"docs/buckets.md) and give the folder."
        )
    if not text.removeprefix(_SCHEME).partition("/")[0]:
        raise JanusError(f"{text} names no bucket; give gs://BUCKET/FOLDER.")
    require(text, "gcsfs")
    from etils import epath  # type: ignore[import-untyped]  # Imported late: it takes half a second.

    _configure()
    return cast(Path, epath.Path(text.rstrip("/")))


def require_local(path: StrPath, name: str) -> Path:
    """Returns the path of files that are read or written in place, such as ArrayRecord shards.

    Raises:
      JanusError: The path is a URL.
    """
    if _URL.match(os.fspath(path)):
        raise JanusError(
            f"{name} is {os.fspath(path)}, but these files must be in a folder; mount the bucket (see "
            f"docs/buckets.md) and give the folder."
        )
    return Path(path)


def check_bucket(path: StrPath) -> None:
    """Checks that a folder can be written, if it is on a bucket. Call it before device work.

    Raises:
      JanusError: The bucket does not exist, or access is denied.
      StorageUnavailable: The bucket does not answer.
    """
    if is_remote(path):
        probe = f"{as_path(path)}/.write_test-{os.uname().nodename}-{os.getpid()}"
        retrying(path, lambda: _filesystem().pipe_file(probe, b"x"))
        retrying(path, lambda: _filesystem().rm_file(probe))


@contextlib.contextmanager
def bucket_errors(path: StrPath) -> Iterator[None]:
    """Context manager that turns errors of a bucket into `StorageUnavailable` or `JanusError`. Local paths: no effect.

    Raises:
      JanusError: The bucket does not exist, or access is denied.
      StorageUnavailable: The bucket does not answer, or answers with errors.
    """
    try:
        yield
    except (JanusError, RunStopped):
        raise
    except Exception as error:
        if is_remote(path) and (stop := bucket_error(path, error)) is not None:
            raise stop from error
        raise


def bucket_error(path: StrPath, error: BaseException) -> Exception | None:
    """Returns the exception to raise for an error of a request to a bucket; None for other errors."""
    bucket = _SCHEME + os.fspath(path).removeprefix(_SCHEME).partition("/")[0]
    chained: BaseException | None = error
    while chained is not None:
        reason = " ".join(str(chained).split()) or type(chained).__name__
        reason = reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}…"
        if _is_unavailable(chained):
            return StorageUnavailable(
                f"{path}: the bucket {bucket} does not answer ({reason}); what was saved before is intact, repeat the "
                f"command when it answers again."
            )
        if _is_denied(chained):
            return JanusError(
                f"{path} cannot be used, access to {bucket} is denied ({reason}); run gcloud auth application-default "
                f"login, or give this machine's service account the role Storage Object User."
            )
        if _is_missing_bucket(chained):
            return JanusError(f"{path} cannot be used, the bucket {bucket} does not exist; create it or correct it.")
        chained = chained.__cause__ or chained.__context__
    return None


def is_unavailable(error: BaseException | None) -> bool:
    """Returns whether an error or one of its causes means that a bucket does not answer."""
    if "gcsfs" not in sys.modules:
        return False
    while error is not None:
        if isinstance(error, StorageUnavailable) or _is_unavailable(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _code(error: BaseException) -> int:
    # HttpError of gcsfs has `code`, exceptions of aiohttp have `status`. A code may be text.
    found = str(getattr(error, "code", None) or getattr(error, "status", None))
    return int(found) if found.isdigit() else 0


def _kinds(error: BaseException) -> set[str]:
    # Packages and names, because the packages may not be installed.
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}


_NETWORK_ERRORS = {"aiohttp.ClientError", "requests.RequestException", "google.TransportError"}
_TEMPORARY = (408, 429, *range(500, 600))
_TEMPORARY_WORDS = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b|HTTP response code: (408|429|5\d\d)")
_DENIED_WORDS = re.compile(r"\b(PERMISSION_DENIED|UNAUTHENTICATED)\b|^Forbidden: |HTTP response code: 40[13]")
_MISSING_WORDS = re.compile(r"specified bucket does not exist|\bb/[^/]+/o($|\?)")


def _is_unavailable(error: BaseException) -> bool:
    is_network = isinstance(error, ConnectionError | TimeoutError) or bool(_kinds(error) & _NETWORK_ERRORS)
    return is_network or _code(error) in _TEMPORARY or bool(_TEMPORARY_WORDS.search(str(error)))


def _is_denied(error: BaseException) -> bool:
    is_auth = "google.GoogleAuthError" in _kinds(error) or _code(error) in (401, 403)
    return is_auth or bool(_DENIED_WORDS.search(str(error)))


def _is_missing_bucket(error: BaseException) -> bool:
    return (isinstance(error, FileNotFoundError) or _code(error) == 404) and bool(_MISSING_WORDS.search(str(error)))


def retrying(path: StrPath, request: Callable[[], T]) -> T:
    """Calls a function that accesses a bucket. Repeats it with growing delays while the bucket does not answer.

    Raises:
      JanusError: See `bucket_errors`.
      StorageUnavailable: The bucket has not answered for `RETRY_SECONDS`.
    """
    deadline, delay = time.monotonic() + RETRY_SECONDS, _FIRST_DELAY
    while True:
        try:
            with bucket_errors(path):
                return request()
        except StorageUnavailable as error:
            if time.monotonic() + delay > deadline:
                raise
            _log.warning("%s The request is repeated in %.0f s.", error, delay)
        time.sleep(delay * random.uniform(0.5, 1))
        delay = min(2 * delay, _LONGEST_DELAY)


def write_object(path: Path, content: bytes) -> None:
    """Writes an object. Raises the errors of `retrying`."""
    retrying(path, lambda: _filesystem().pipe_file(os.fspath(path), content))


def object_checksums(folder: StrPath) -> dict[str, dict[str, Any]]:
    """Returns size and checksums of every object below a folder, by relative path. The bucket provides them.

    CRC-32C is not enough: it is the same for all files that end with their own CRC-32C, as those of OCDBT do. Objects
    that were composed of parts have no MD5.
    """
    prefix = _key(folder)
    found = retrying(folder, lambda: _filesystem().find(f"{_SCHEME}{prefix}", detail=True))
    return {
        name.removeprefix(f"{prefix}/"): {"bytes": int(entry["size"])} | {k: entry[k] for k in _CHECKSUMS if k in entry}
        for name, entry in sorted(found.items())
        if name != prefix
    }


def move_folder(source: Path, target: Path) -> None:
    """Moves a folder within a bucket. The bucket copies the objects itself."""
    retrying(source, lambda: _filesystem().copy(os.fspath(source), os.fspath(target), recursive=True))
    retrying(source, lambda: _filesystem().rm(os.fspath(source), recursive=True))


def remove_folder(path: Path) -> None:
    """Removes a local folder, or all objects below a folder on a bucket. Does nothing if there are none."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif retrying(path, path.exists):
        retrying(path, lambda: _filesystem().rm(os.fspath(path), recursive=True))


def upload_folder(folder: Path, target: Path, last: Iterable[str] = (_COMPLETE,)) -> None:
    """Uploads the files of a local folder.

    Args:
      folder: Local folder.
      target: Folder on a bucket.
      last: Files that are uploaded after all others, by relative path.
    """
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]

    def upload(name: str) -> None:
        retrying(target, lambda: _filesystem().put_file(str(folder / name), f"{target}/{name}"))

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(upload, [name for name in names if name not in last]))
    for name in last:
        if name in names:
            upload(name)


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yields a local folder to write files to: the folder itself, or one that is uploaded if the block succeeds."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
        upload_folder(Path(temporary), path)


def local_copy(path: StrPath, names: Collection[str] | None = None) -> Path:
    """Returns a local path with the content of a file or folder. A copy of a bucket's objects is cached.

    Objects that have not changed since the last call are not downloaded again. The cache is `janus_jax/buckets` in
    `$XDG_CACHE_HOME` (`~/.cache`).

    Args:
      path: File or folder, local or on a bucket.
      names: Names of the files to download; None for all files.

    Raises:
      JanusError: The path does not exist, or see `as_path` and `bucket_errors`.
      StorageUnavailable: The bucket does not answer.
    """
    if not is_remote(path):
        return as_path(path)
    key = _key(as_path(path))
    objects = retrying(path, lambda: _filesystem().find(f"{_SCHEME}{key}", detail=True))
    objects = {name: entry for name, entry in objects.items() if not name.endswith("/")}
    if not objects:
        raise JanusError(f"{path} does not exist.")
    is_file = key in objects
    if names is not None and not is_file:
        objects = {name: entry for name, entry in objects.items() if name.rpartition("/")[2] in names}
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "janus_jax" / "buckets"
    folder = cache / (os.path.dirname(key) if is_file else key)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{_INDEX}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Processes of one machine share the copy.
        _download(objects, folder, cache, remove_others=names is None and not is_file)
    return cache / key


def _download(objects: dict[str, Any], folder: Path, cache: Path, *, remove_others: bool) -> None:
    index = folder / _INDEX
    known = json.loads(index.read_text()) if index.exists() else {}

    def download(name: str) -> None:
        entry, file = objects[name], cache / name
        version = f"{entry.get('generation')} {entry.get('md5Hash') or entry.get('crc32c')}"
        if known.get(name) == version and file.is_file() and file.stat().st_size == int(entry["size"]):
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        retrying(f"{_SCHEME}{name}", lambda: _filesystem().get_file(f"{_SCHEME}{name}", str(partial)))
        partial.replace(file)
        known[name] = version

    try:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(download, objects))
    finally:
        index.write_text(json.dumps(known))
    for name in known.keys() - objects.keys() if remove_others else ():
        (cache / name).unlink(missing_ok=True)


class Mirror:
    """Local folder whose files are uploaded again after they have changed.

    Args:
      target: Folder on a bucket.
      seconds: Time between two uploads by `upload_if_due`.

    Attributes:
      folder: The local folder.
    """

    def __init__(self, target: Path, seconds: float) -> None:
        self._target, self._seconds = target, seconds
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self._uploaded: dict[Path, tuple[int, int]] = {}
        self._last = time.monotonic()

    def fetch(self, name: str) -> None:
        """Downloads a file, if it exists."""
        source = self._target / name
        if retrying(source, source.exists):
            (self.folder / name).write_bytes(retrying(source, source.read_bytes))

    def upload(self) -> None:
        """Uploads the files that have changed. Raises the errors of `retrying`."""
        retrying(self._target, self._upload)

    def upload_if_due(self) -> None:
        """Uploads the files that have changed, at intervals. A bucket that does not answer causes a warning only."""
        if time.monotonic() - self._last < self._seconds:
            return
        self._last = time.monotonic()
        try:
            with bucket_errors(self._target):
                self._upload()
        except StorageUnavailable as error:
            _log.warning("%s The files are uploaded later.", error)

    def close(self) -> None:
        """Uploads the files that have changed and removes the local folder."""
        try:
            self.upload()
        finally:
            self._temporary.cleanup()

    def _upload(self) -> None:
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            status = file.stat()
            version = (status.st_size, status.st_mtime_ns)
            if self._uploaded.get(file) != version:
                target = self._target / str(file.relative_to(self.folder))
                _filesystem().pipe_file(os.fspath(target), file.read_bytes())
                self._uploaded[file] = version
        self._last = time.monotonic()


def _key(path: StrPath) -> str:
    return os.fspath(path).removeprefix(_SCHEME).rstrip("/")


def _configure() -> None:
    """Configures the file system that epath and this module use."""
    import fsspec

    settings = fsspec.config.conf.setdefault("gcs", {})
    settings["use_listings_cache"] = False  # Other processes write, too.
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        settings["token"] = "anon"
        # Read when gcsfs is imported. Otherwise it asks Google for the type of the bucket.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # It logs tracebacks of errors that are reported here.


def _filesystem() -> Any:
    import fsspec

    _configure()
    return fsspec.filesystem("gcs", finalize_on_close=True)  # The same object as in epath.
