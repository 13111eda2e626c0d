"""Parameters to and from Orbax's format without ever holding them whole.

What is written is a plain Orbax checkpoint of a tree of arrays: `StandardCheckpointer.restore` reads it, onto any
mesh. Orbax itself would take whole arrays, and the stacked matrices of a 7B are gigabytes each; so the leaves given
to it are promises, and a type handler of ours redeems them one layer at a time. Arrays are stored as uncompressed
zarr (weights hardly compress), one directory a leaf, whose chunks are then contiguous runs of bytes and go from the
mapped source file to the disk without a copy in between.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
import tensorstore as ts
from orbax.checkpoint.type_handlers import (  # type: ignore[import-untyped]
    NumpyHandler,
    ParamInfo,
    create_type_handler_registry,
    get_json_tspec_read,
    get_json_tspec_write,
    get_ts_context,
    is_ocdbt_checkpoint,
)

from checkpoints_convert.safetensors_writer import as_bytes
from checkpoints_convert.tree import Leaf, Shape
from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, read_json, reading

_CHUNK_BYTES = 64 << 20
"""Chunks are at most this large: few enough files, and small enough that a shard reads little beside its own."""

_WRITERS = 4

_AGAIN = "convert the checkpoint again"

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Promise:
    """A leaf still to be read.

    Attributes:
      leaf: which.
      dtype: that it is stored in.
      read: numbers of one layer (None: of the whole), in the leaf's shape.
      progress: told the bytes of every chunk that is written.
    """

    leaf: Leaf
    dtype: np.dtype
    read: Callable[[int | None], np.ndarray]
    progress: Progress = lambda _: None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf.full_shape

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """One layer, cut along its first axis where that is still too large."""
        shape = self.leaf.shape
        pieces = math.ceil(math.prod(shape) * self.dtype.itemsize / _CHUNK_BYTES)
        rows = math.ceil(shape[0] / pieces)
        return (*([] if self.leaf.layers is None else [1]), rows, *shape[1:])


class _PromiseHandler(NumpyHandler):
    """Writes promises as Orbax writes numpy arrays, and reads them back as those."""

    async def serialize(self, values: Sequence[Any], infos: Sequence[ParamInfo], args: Any = None) -> Sequence[Any]:
        stores = await asyncio.gather(*map(self._create, values, infos))
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(_WRITERS) as pool:
            jobs = [
                loop.run_in_executor(pool, _write_layer, promise, Path(info.path), store, layer)
                for promise, info, store in zip(values, infos, stores, strict=True)
                for layer in promise.leaf.layer_indices
            ]
            await asyncio.gather(*jobs)
        return []

    async def _create(self, promise: Promise, info: ParamInfo) -> ts.TensorStore:
        await info.await_path_creation()
        spec = get_json_tspec_write(info, False, promise.shape, promise.chunk_shape, promise.dtype)
        return await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)


def _write_layer(promise: Promise, directory: Path, store: ts.TensorStore, layer: int | None) -> None:
    array = promise.read(layer)
    outer: list[int | slice] = [] if layer is None else [layer]
    rows = promise.chunk_shape[len(outer)]
    raw = _chunks_are_raw(store, promise.chunk_shape)
    for index, start in enumerate(range(0, array.shape[0], rows)):
        # Cast here, so that no more than a chunk is ever held.
        chunk = np.ascontiguousarray(array[start : start + rows], promise.dtype)
        if raw:
            name = ".".join(map(str, [*outer, index, *[0] * (array.ndim - 1)]))
            _write_file(directory / name, chunk, rows)
        else:
            store[(*outer, slice(start, start + len(chunk)))].write(chunk).result()
        promise.progress(chunk.nbytes)


def _write_file(path: Path, array: np.ndarray, rows: int) -> None:
    data = as_bytes(array)
    with path.open("wb", buffering=0) as file:
        written = 0
        while written < len(data):
            written += file.write(data[written:]) or 0
        # A chunk at the edge has the others' size; what it has beyond the array is never read.
        file.truncate(len(data) // max(1, array.shape[0]) * rows)


def _chunks_are_raw(store: ts.TensorStore, chunk_shape: tuple[int, ...]) -> bool:
    """Whether a chunk's file is its numbers and nothing else, under the name this module gives it.

    So it is today; should a later Orbax choose otherwise, tensorstore writes the chunks, at half the speed.
    """
    metadata = store.spec().to_json().get("metadata", {})
    plain = {"compressor": None, "filters": None, "order": "C", "zarr_format": 2, "dimension_separator": "."}
    return (
        all(metadata.get(name) == value for name, value in plain.items())
        and tuple(metadata.get("chunks", ())) == chunk_shape
    )


def write_params(directory: Path, promises: Sequence[Promise]) -> None:
    """Writes an Orbax checkpoint of a tree of these leaves.

    Args:
      directory: where; it must not exist. It appears when everything is in it.
    """
    tree: dict[str, Any] = {}
    for promise in promises:
        *parents, last = promise.leaf.keys
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = promise
    registry = create_type_handler_registry((Promise, _PromiseHandler()))
    with _quiet():
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(directory.absolute(), args=ocp.args.PyTreeSave(tree))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Orbax warns of what is meant here: that nothing is a jax.Array, and that there is no database to merge.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class StoredParams:
    """The parameters of an Orbax checkpoint, opened and checked, read layer by layer.

    Args:
      directory: the checkpoint, in any of Orbax's formats.
      leaves: what it should hold.

    Raises:
      JanusError: there is no checkpoint, or its arrays are not those; one message tells all mismatches.
    """

    def __init__(self, directory: Path, leaves: Sequence[Leaf]) -> None:
        self._directory = directory.absolute()
        file = self._directory / "_METADATA"
        if not file.is_file():
            raise JanusError(f"{directory} is no complete Orbax checkpoint; {_AGAIN}.")
        metadata = read_json(file, _AGAIN)
        # Not by Orbax, which opens all arrays at once and leaves the rest hanging, loudly, when one fails.
        with reading(file, _AGAIN):
            keys = [entry["key_metadata"] for entry in metadata["tree_metadata"].values()]
            found = {"/".join(str(key["key"]) for key in path) for path in keys}
        self._zarr3 = metadata.get("use_zarr3") is True
        self._ocdbt = is_ocdbt_checkpoint(self._directory)
        self._context = get_ts_context(use_ocdbt=self._ocdbt)
        self._stores: dict[str, ts.TensorStore] = {}
        shapes: dict[str, Shape] = dict.fromkeys(found, ())
        shapes |= {leaf.path: tuple(self._open(leaf).shape) for leaf in leaves if leaf.path in found}
        check_arrays(shapes, leaves, str(directory))
        # Now, and not when half of the model is on its devices.
        for leaf in leaves:
            self._check_chunks(leaf)

    def dtype(self, leaf: Leaf) -> np.dtype:
        """The dtype that the leaf is stored in."""
        return np.dtype(self._open(leaf).dtype.numpy_dtype)

    def read(self, leaf: Leaf, layer: int | None) -> np.ndarray:
        """The numbers of one layer (None: of a leaf that is not stacked)."""
        store = self._open(leaf)
        try:
            return np.asarray(store[() if layer is None else layer].read().result())
        except ValueError as error:
            raise self._damaged(leaf, str(error)) from error

    def _damaged(self, leaf: Leaf, what: str) -> JanusError:
        return JanusError(f"{self._directory} is damaged at {leaf.path} ({what}); {_AGAIN}.")

    def _check_chunks(self, leaf: Leaf) -> None:
        """Whether the files that `write_params` makes of a leaf are there, and whole."""
        store = self._open(leaf)
        chunk_shape = tuple(side or 1 for side in store.chunk_layout.read_chunk.shape or ())
        if not _chunks_are_raw(store, chunk_shape):
            return
        size = math.prod(chunk_shape) * self.dtype(leaf).itemsize
        counts = (math.ceil(side / chunk) for side, chunk in zip(store.shape, chunk_shape, strict=True))
        for place in itertools.product(*map(range, counts)):
            file = self._directory / ".".join(leaf.keys) / ".".join(map(str, place))
            found = file.stat().st_size if file.exists() else 0
            if found != size:
                raise self._damaged(leaf, f"{file.name} has {found} bytes, not {size}")

    def _open(self, leaf: Leaf) -> ts.TensorStore:
        if leaf.path not in self._stores:
            info = ParamInfo(
                name=".".join(leaf.keys),
                parent_dir=_epath(self._directory),
                is_ocdbt_checkpoint=self._ocdbt,
                use_zarr3=self._zarr3,
                ts_context=self._context,
            )
            spec = get_json_tspec_read(info, self._ocdbt)
            try:
                self._stores[leaf.path] = ts.open(ts.Spec(spec), open=True, context=self._context).result()
            except PARSE_ERRORS as error:
                raise self._damaged(leaf, "no array that can be read is there") from error
        return self._stores[leaf.path]


def _epath(path: Path) -> Any:
    from etils import epath  # type: ignore[import-untyped]  # Orbax's own kind of path, installed with it.

    return epath.Path(os.fspath(path))


def check_arrays(shapes: Mapping[str, Shape], leaves: Sequence[Leaf], where: str) -> None:
    """Holds the arrays of a tree against the leaves it should have.

    Raises:
      JanusError: arrays are missing, surplus or misshapen; one message tells all of them.
    """
    expected = {leaf.path: leaf.full_shape for leaf in leaves}
    faults = [
        *(f"{path} is missing" for path in expected if path not in shapes),
        *(f"{path} is surplus" for path in shapes if path not in expected),
        *(f"{p} is {list(shapes[p])}, not {list(s)}" for p, s in expected.items() if shapes.get(p, s) != s),
    ]
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise JanusError(f"{where} does not hold the model of its config: {', '.join(faults[:8])}{more}.")


def flatten(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The arrays of nested dicts, by their paths."""
    if isinstance(tree, Mapping):
        yield from itertools.chain.from_iterable(flatten(value, (*keys, name)) for name, value in tree.items())
    else:
        yield "/".join(keys), tree
