"""Reads and verifies one checkpoint folder, and writes its checksums.

    DIR/1200/state/          arrays in Orbax format
    DIR/1200/run/            JSON: config, data positions, metrics, and the shapes of the arrays
    DIR/1200/checksums.json  size and CRC-32 of every file in state/ and run/; on a bucket, size and CRC-32C, which the
                             bucket provides without reading the objects

With several processes, all processes call every function, and all raise if one of them finds damage.
"""

import errno
import json
import logging
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import jax
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
from etils import epath  # type: ignore[import-untyped]
from flax.traverse_util import flatten_dict, unflatten_dict

from janus_jax.buckets import bucket_errors, is_remote, object_checksums
from janus_jax.coordination import combine
from janus_jax.errors import JanusError, StorageUnavailable
from janus_jax.training.param_paths import path_name

_log = logging.getLogger(__name__)

STATE, RUN = "state", "run"
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")
_NO_ACCESS = (
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
)
"""Errors of the system that do not mean that a file is damaged."""

_MAX_REASON = 160
_CHECKSUMS = "checksums.json"
_COMMITTED = "commit_success.txt"
"""Marker that Orbax writes last on a bucket."""
_CHECKSUM_THREADS = 4
_CHUNK = 2**24  # bytes

T = TypeVar("T")


class DamagedCheckpointError(Exception):
    """A checkpoint cannot be read. All processes raise it together."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """An undamaged checkpoint, opened for reading its parameters. Nothing in its folder changes.

    Attributes:
      path: Folder of the checkpoint.
      step: Steps taken.
      config: Config of the run as JSON values.
      arrays: Dtype and shape of each array by name.
    """

    path: epath.Path
    step: int
    config: dict[str, Any]
    arrays: Mapping[str, str]

    @classmethod
    def newest(cls, directory: str | Path) -> Self:
        """Opens the newest undamaged checkpoint in a folder. The run may still be saving to it.

        Raises:
          JanusError: The folder has no checkpoint, or only damaged ones.
        """
        for step in reversed(saved_steps(directory)):
            path = absolute_path(directory) / str(step)
            try:
                content = read_verified_run(path)
            except DamagedCheckpointError as error:
                _log.warning("%s is damaged (%s); trying the checkpoint before it.", path, error)
                continue
            return cls(path, step, content["config"], content["arrays"])
        raise JanusError(f"{directory} has only damaged checkpoints; restore one from a copy.")

    def shapes(self, names: Collection[str]) -> dict[tuple[str, ...], tuple[int, ...]]:
        """Returns shapes by path of the parameters whose last path component is one of `names`."""
        found = {}
        for name, description in self.arrays.items():
            branch, *path = name.split("/")
            if branch in ("params", "frozen") and path[-1] in names:
                found[tuple(path)] = tuple(map(int, description.partition("[")[2].removesuffix("]").split(",")))
        return found

    def params(self, abstract: Any, *, average: bool = False) -> Any:
        """Reads trained and frozen parameters.

        Args:
          abstract: Shapes, dtypes and shardings of the parameters, without boxes.
          average: Reads the moving average of a parameter instead, if the checkpoint has one.

        Raises:
          JanusError: The checkpoint does not have these parameters, or cannot be read.
        """
        branches = ["ema", "params", "frozen"] if average else ["params", "frozen"]
        wanted, found = flatten_dict(abstract, sep="/"), dict[str, str]()
        for name, leaf in wanted.items():
            branch = next((branch for branch in branches if f"{branch}/{name}" in self.arrays), None)
            if branch is None:
                raise JanusError(f"{self.path} has no parameter {name}; it was trained with another model.")
            found[name] = f"{branch}/{name}"
            saved, shape = self.arrays[found[name]], f"[{','.join(map(str, leaf.shape))}]"
            if not saved.endswith(shape):
                raise JanusError(f"{self.path} is of another model: {name} is {saved}; it must be {shape}.")
        item = unflatten_dict({found[name]: leaf for name, leaf in wanted.items()}, sep="/")
        arguments = ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        try:
            tree = read_on_all_processes(lambda: _restore(ocp.PyTreeCheckpointHandler(), self.path / STATE, arguments))
        except DamagedCheckpointError as error:
            raise JanusError(f"{self.path} cannot be read ({error}).") from error
        read = flatten_dict(tree, sep="/")
        return unflatten_dict({name: read[found[name]] for name in wanted}, sep="/")


def saved_steps(directory: str | Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, including damaged ones.

    Raises:
      JanusError: The folder has no checkpoint.
    """
    if not (steps := finished_steps(directory)):
        raise JanusError(f"{directory} has no checkpoint; give the folder in which a run saved its checkpoints.")
    return steps


def finished_steps(directory: str | Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, without those of interrupted saves. The folder may not exist.

    Raises:
      JanusError: The folder is on a bucket that does not exist or denies access.
      StorageUnavailable: The bucket does not answer.
    """
    with bucket_errors(directory):
        paths = [path for path in absolute_path(directory).glob("*") if path.name.isdecimal()]
        # On a bucket, the folder of an unfinished save has its final name, and a marker is written last.
        return sorted(int(path.name) for path in paths if not is_remote(path) or (path / _COMMITTED).exists())


def read_state(path: epath.Path, abstract: T) -> tuple[dict[str, Any], T]:
    """Reads the run's JSON and the whole state, after verifying the checksums.

    Args:
      path: Folder of the checkpoint.
      abstract: Shapes, dtypes and shardings of the state, on any mesh.

    Raises:
      DamagedCheckpointError: The checkpoint is damaged.
      JanusError: The checkpoint belongs to another model.
    """
    content = read_verified_run(path)
    saved, wanted = content["arrays"], describe_arrays(abstract)
    for name in sorted(wanted.keys() | saved.keys()):
        found, expected = saved.get(name, "missing"), wanted.get(name, "missing")
        if found != expected:
            raise JanusError(
                f"{path} is of another model or recipe: {name} is {found} in the checkpoint and {expected} in the "
                f"config; use the config of the checkpoint, or start in another folder."
            )
    # Only the handler: Orbax's manager waits for all processes, and a process that finds damage does not arrive.
    handler = ocp.StandardCheckpointHandler()
    return content, read_on_all_processes(lambda: _restore(handler, path / STATE, ocp.args.StandardRestore(abstract)))


def _restore(handler: Any, path: epath.Path, arguments: Any) -> Any:
    with bucket_errors(path):
        return handler.restore(path, args=arguments)


def read_verified_run(path: epath.Path) -> dict[str, Any]:
    """Verifies the checksums and reads the run's JSON.

    Raises:
      DamagedCheckpointError: The checkpoint is damaged.
    """
    read_on_all_processes(lambda: _verify_checksums(path, jax.process_index(), jax.process_count()))
    return read_on_all_processes(lambda: read_run(path))


def read_run(path: epath.Path) -> dict[str, Any]:
    """Reads the run's JSON without verifying it."""
    content: dict[str, Any] = _restore(ocp.JsonCheckpointHandler(), path / RUN, None)
    return content


def describe_arrays(state: Any) -> dict[str, str]:
    """Returns dtype and shape of each array by name, such as `float32[3,16]`."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {path_name(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in leaves}


def read_on_all_processes(read: Callable[[], T]) -> T:
    """Calls `read` in every process and returns its result.

    Raises:
      DamagedCheckpointError: `read` raised an exception in this or another process.
      JanusError: A file could not be accessed in this or another process.
      StorageUnavailable: A bucket does not answer to this or another process.
    """
    reason, kind, value = "", "", None
    try:
        value = read()
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        # Running out of memory does not mean that the file is damaged.
        if any(words in reason for words in _OUT_OF_MEMORY):
            raise
        kind = "damage"
        if isinstance(error, StorageUnavailable):
            kind = "unavailable"
        elif isinstance(error, JanusError) or (isinstance(error, OSError) and error.errno in _NO_ACCESS):
            kind = "access"
    failed = combine("read", {"reason": reason, "kind": kind}, _first_failure)
    if failed and failed["kind"] == "unavailable":
        raise StorageUnavailable(failed["reason"])
    if failed and failed["kind"] == "access":
        raise JanusError(f"A checkpoint cannot be read ({failed['reason']}); make it readable and repeat the command.")
    if failed:
        reason = failed["reason"]
        raise DamagedCheckpointError(reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}…")
    return cast(T, value)


def _first_failure(processes: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    return next((process for process in processes if process["reason"]), {})


def absolute_path(directory: str | Path) -> epath.Path:
    """Returns the absolute path of a folder, as Orbax requires. A URL stays unchanged."""
    return epath.Path(directory if is_remote(directory) else os.path.abspath(directory))


def write_checksums(folder: epath.Path) -> None:
    """Writes size and checksum of every file of a checkpoint to its `checksums.json`."""
    if is_remote(folder):
        stored = object_checksums(folder)
        checksums = {name: entry for name, entry in stored.items() if name.startswith((f"{STATE}/", f"{RUN}/"))}
    else:
        files = [*_files(folder / STATE), *_files(folder / RUN)]
        with ThreadPoolExecutor(_CHECKSUM_THREADS) as pool:
            found = zip(files, pool.map(_checksum, files), strict=True)
            checksums = {str(file.relative_to(folder)): entry for file, entry in found}
    with bucket_errors(folder):
        (folder / _CHECKSUMS).write_text(json.dumps(checksums, indent=1))


def _verify_checksums(folder: epath.Path, index: int, count: int) -> None:
    """Verifies every `count`-th file, starting with number `index`, so that processes share the work.

    Raises:
      ValueError: A file has changed.
      OSError: A file is missing.
      StorageUnavailable: The checkpoint is on a bucket that does not answer.
    """
    with bucket_errors(folder):
        checksums = sorted(json.loads((folder / _CHECKSUMS).read_text()).items())[index::count]
    stored = object_checksums(folder) if is_remote(folder) else None
    with ThreadPoolExecutor(_CHECKSUM_THREADS) as pool:

        def find(name: str) -> dict[str, Any]:
            return _checksum(folder / name) if stored is None else stored.get(name, {"bytes": 0})

        for (name, expected), actual in zip(checksums, pool.map(find, (name for name, _ in checksums)), strict=True):
            # A checkpoint that was copied between a disk and a bucket has the other kind of checksum.
            compared = expected.keys() & actual.keys()
            if any(actual[key] != expected[key] for key in compared):
                raise ValueError(f"{name} has {_describe(actual)}; it was written with {_describe(expected)}")


def _describe(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{value} bytes" if key == "bytes" else f"{key} {value}" for key, value in entry.items())


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _checksum(file: epath.Path) -> dict[str, int]:
    size = checksum = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return {"bytes": size, "crc32": checksum}
