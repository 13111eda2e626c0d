"""Writes and reads Orbax checkpoints layer by layer.

The result is a plain Orbax checkpoint of a tree of arrays: `StandardCheckpointer.restore` reads it, onto any mesh.
Orbax itself takes whole arrays, and the stacked matrices of a 7B model are gigabytes each. So the leaves passed to
Orbax are `DeferredParameter`s, and a type handler reads and writes them one layer at a time. Arrays are stored as
uncompressed zarr (weights hardly compress), one directory per parameter. Chunks are then contiguous bytes, which are
written from the memory-mapped source file to the disk without a copy.
"""

import asyncio
import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
import tensorstore as ts
from etils import epath  # type: ignore[import-untyped]  # Path type of Orbax, installed with it.
from orbax.checkpoint.type_handlers import (  # type: ignore[import-untyped]
    NumpyHandler,
    ParamInfo,
    create_type_handler_registry,
    get_json_tspec_read,
    get_json_tspec_write,
    get_ts_context,
    is_ocdbt_checkpoint,
)

from checkpoints_convert.parameters import Parameter, Shape
from checkpoints_convert.safetensors_writer import as_bytes, write_all
from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, read_json, reading

_CHUNK_BYTES = 64 << 20
"""Largest size of a chunk. Larger chunks need fewer files; smaller chunks let a device read little but its shard."""

_WRITERS = 4
_MAX_LISTED = 8

_REMEDY = "convert the checkpoint again"


@dataclass(frozen=True)
class DeferredParameter:
    """A parameter whose values are read only when they are written.

    Attributes:
      parameter: The parameter.
      dtype: Dtype to store it in.
      read: Returns the values of one layer, or of a parameter that is not stacked (layer None).
      on_written: Called with the size of every chunk that was written, in bytes, from any thread.
    """

    parameter: Parameter
    dtype: np.dtype
    read: Callable[[int | None], np.ndarray]
    on_written: Callable[[int], object] = lambda _: None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parameter.full_shape

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of a chunk: one layer, or a part of a layer that is too large for one chunk."""
        shape = self.parameter.shape
        pieces = math.ceil(math.prod(shape) * self.dtype.itemsize / _CHUNK_BYTES)
        rows = math.ceil(shape[0] / pieces)
        return (*([] if self.parameter.layers is None else [1]), rows, *shape[1:])


class _DeferredHandler(NumpyHandler):
    """Writes deferred parameters in the format that Orbax uses for numpy arrays."""

    async def serialize(self, values: Sequence[Any], infos: Sequence[ParamInfo], args: Any = None) -> Sequence[Any]:
        stores = await asyncio.gather(*map(self._create, values, infos))
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(_WRITERS) as pool:
            jobs = [
                loop.run_in_executor(pool, _write_layer, deferred, Path(info.path), store, layer)
                for deferred, info, store in zip(values, infos, stores, strict=True)
                for layer in deferred.parameter.layer_indices
            ]
            await asyncio.gather(*jobs)
        return []

    async def _create(self, deferred: DeferredParameter, info: ParamInfo) -> ts.TensorStore:
        await info.await_path_creation()
        spec = get_json_tspec_write(info, False, deferred.shape, deferred.chunk_shape, deferred.dtype)
        return await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)


def _write_layer(deferred: DeferredParameter, directory: Path, store: ts.TensorStore, layer: int | None) -> None:
    array = deferred.read(layer)
    outer: list[int | slice] = [] if layer is None else [layer]
    rows = deferred.chunk_shape[len(outer)]
    raw = _chunks_are_raw(store, deferred.chunk_shape)
    for index, start in enumerate(range(0, array.shape[0], rows)):
        # Casting chunk by chunk keeps memory at the size of a chunk.
        chunk = np.ascontiguousarray(array[start : start + rows], deferred.dtype)
        if raw:
            name = ".".join(map(str, [*outer, index, *[0] * (array.ndim - 1)]))
            _write_file(directory / name, chunk, rows)
        else:
            store[(*outer, slice(start, start + len(chunk)))].write(chunk).result()
        deferred.on_written(chunk.nbytes)


def _write_file(path: Path, array: np.ndarray, rows: int) -> None:
    data = as_bytes(array)
    with path.open("wb", buffering=0) as file:
        write_all(file, data)
        # All chunks have the same size. The bytes of the last chunk beyond the array are never read.
        file.truncate(len(data) // max(1, array.shape[0]) * rows)


def _chunks_are_raw(store: ts.TensorStore, chunk_shape: tuple[int, ...]) -> bool:
    """Returns whether chunk files have the names that this module gives them and contain only values.

    This is true for current versions of Orbax. Otherwise TensorStore writes the chunks, at half the speed.
    """
    metadata = store.spec().to_json().get("metadata", {})
    plain = {"compressor": None, "filters": None, "order": "C", "zarr_format": 2, "dimension_separator": "."}
    return (
        all(metadata.get(name) == value for name, value in plain.items())
        and tuple(metadata.get("chunks", ())) == chunk_shape
    )


def write_params(directory: Path, parameters: Sequence[DeferredParameter]) -> None:
    """Writes an Orbax checkpoint that holds the tree of these parameters.

    Args:
      directory: Folder to create. It exists only when it is complete.
    """
    tree: dict[str, Any] = {}
    for deferred in parameters:
        *parents, last = deferred.parameter.keys
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = deferred
    registry = create_type_handler_registry((DeferredParameter, _DeferredHandler()))
    with _quiet():
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(directory.absolute(), args=ocp.args.PyTreeSave(tree))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Orbax warns that leaves are not jax.Arrays and that there is no OCDBT database. Both are intended.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class OrbaxParams:
    """The parameters of an Orbax checkpoint, read layer by layer.

    Args:
      directory: The checkpoint, in any of Orbax's formats.
      parameters: The expected parameters.

    Raises:
      JanusError: The checkpoint does not exist, is damaged, or holds other parameters; one message lists all
        mismatches.
    """

    def __init__(self, directory: Path, parameters: Sequence[Parameter]) -> None:
        self._directory = directory.absolute()
        file = self._directory / "_METADATA"
        if not file.is_file():
            raise JanusError(f"{directory} is not a complete Orbax checkpoint; {_REMEDY}.")
        metadata = read_json(file, _REMEDY)
        # Orbax itself opens all arrays at once. If one fails, the threads of the others hang and print tracebacks.
        with reading(file, _REMEDY):
            keys = [entry["key_metadata"] for entry in metadata["tree_metadata"].values()]
            found = {"/".join(str(key["key"]) for key in path) for path in keys}
        self._zarr3 = metadata.get("use_zarr3") is True
        self._ocdbt = is_ocdbt_checkpoint(self._directory)
        self._context = get_ts_context(use_ocdbt=self._ocdbt)
        self._stores: dict[str, ts.TensorStore] = {}
        shapes: dict[str, Shape] = dict.fromkeys(found, ())
        shapes |= {one.path: tuple(self._open(one).shape) for one in parameters if one.path in found}
        check_shapes(shapes, parameters, str(directory))
        # Damage is reported before any parameter is loaded onto a device.
        for parameter in parameters:
            self._check_chunks(parameter)

    def dtype(self, parameter: Parameter) -> np.dtype:
        """Returns the dtype that the parameter is stored in."""
        return np.dtype(self._open(parameter).dtype.numpy_dtype)

    def read(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        """Returns one layer of a parameter, or a whole parameter that is not stacked (layer None)."""
        store = self._open(parameter)
        try:
            return np.asarray(store[() if layer is None else layer].read().result())
        except ValueError as error:
            raise self._damaged(parameter, str(error)) from error

    def _damaged(self, parameter: Parameter, reason: str) -> JanusError:
        return JanusError(f"{self._directory} is damaged at {parameter.path} ({reason}); {_REMEDY}.")

    def _check_chunks(self, parameter: Parameter) -> None:
        """Checks that the chunk files of a parameter exist and have their full size."""
        store = self._open(parameter)
        chunk_shape = tuple(side or 1 for side in store.chunk_layout.read_chunk.shape or ())
        if not _chunks_are_raw(store, chunk_shape):
            return
        size = math.prod(chunk_shape) * self.dtype(parameter).itemsize
        counts = (math.ceil(side / chunk) for side, chunk in zip(store.shape, chunk_shape, strict=True))
        for index in itertools.product(*map(range, counts)):
            file = self._directory / ".".join(parameter.keys) / ".".join(map(str, index))
            found = file.stat().st_size if file.exists() else 0
            if found != size:
                raise self._damaged(parameter, f"{file.name} has {found} bytes, not {size}")

    def _open(self, parameter: Parameter) -> ts.TensorStore:
        if parameter.path not in self._stores:
            info = ParamInfo(
                name=".".join(parameter.keys),
                parent_dir=epath.Path(self._directory),
                is_ocdbt_checkpoint=self._ocdbt,
                use_zarr3=self._zarr3,
                ts_context=self._context,
            )
            spec = get_json_tspec_read(info, self._ocdbt)
            try:
                self._stores[parameter.path] = ts.open(ts.Spec(spec), open=True, context=self._context).result()
            except PARSE_ERRORS as error:
                raise self._damaged(parameter, "it cannot be opened") from error
        return self._stores[parameter.path]


def check_shapes(shapes: Mapping[str, Shape], parameters: Sequence[Parameter], where: str) -> None:
    """Checks that a tree of arrays has the paths and shapes of the parameters.

    Args:
      shapes: Shape of every array, by path.
      parameters: The expected parameters.
      where: Name of the tree, for the message.

    Raises:
      JanusError: Arrays are missing, surplus or misshapen. One message lists all of them.
    """
    expected = {parameter.path: parameter.full_shape for parameter in parameters}
    mismatches = [
        *(f"{path} is missing" for path in expected if path not in shapes),
        *(f"{path} is surplus" for path in shapes if path not in expected),
        *(f"{p} is {list(shapes[p])}, not {list(s)}" for p, s in expected.items() if shapes.get(p, s) != s),
    ]
    if mismatches:
        more = f" and {len(mismatches) - _MAX_LISTED} more" if len(mismatches) > _MAX_LISTED else ""
        listed = ", ".join(mismatches[:_MAX_LISTED])
        raise JanusError(f"{where} does not hold the model that its config describes: {listed}{more}.")
