"""Opens the files that store a checkpoint's tensors.

Every tensor is a read-only numpy view of a memory-mapped file, so values are read from disk only when they are used.
Neither torch nor jax is needed.
"""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints_convert.torch_zip import open_torch_zip
from janus_jax.errors import JanusError
from janus_jax.files import check_lfs_pointer, read_json, reading

SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
)
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_MAX_HEADER_BYTES = 100_000_000


def find_weights(path: Path) -> Path:
    """Returns the file that holds the weights or their index: `path` itself, or a file in the folder `path`.

    Raises:
      JanusError: The path does not exist, or the folder holds no weights, several files without an index, or a training
        run.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise JanusError(f"{path} does not exist; give the folder of a checkpoint or a file with weights.")
    candidates = weight_candidates([p.name for p in path.iterdir() if p.is_file()])
    if len(candidates) == 1:
        return path / candidates[0]
    if not candidates:
        _refuse_training_run(path)
        raise JanusError(f"{path} holds no weights; expected one of {', '.join(WEIGHT_FILES)}.")
    raise JanusError(
        f"{path} holds several files with weights and no index ({', '.join(candidates)}); "
        f"give one of the files, or fetch the missing *.index.json."
    )


def weight_candidates(names: Collection[str]) -> list[str]:
    """Returns those of a folder's files that may hold its weights or their index.

    There is one if a file has a usual name. Otherwise the folder's only file with weights is taken, where safetensors
    come before formats of torch.
    """
    for name in WEIGHT_FILES:
        if name in names:
            return [name]
    found = sorted(name for name in names if "/" not in name and Path(name).suffix in WEIGHT_SUFFIXES)
    return [name for name in found if Path(name).suffix == ".safetensors"] or found


def _refuse_training_run(path: Path) -> None:
    """Raises if the path is a workdir of janus-train or a folder of one of its stages. Names the model to give."""
    stages = [folder.parent for folder in path.glob("stage_*/checkpoints")]
    stages += [folder for folder in (path, *path.parents) if folder.name.startswith("stage_")]
    for stage in stages:
        if (stage / "checkpoints").is_dir():
            raise JanusError(
                f"{path} is a folder of a training run, not of a model; export the model with janus-export --workdir "
                f"{stage.parent} --out MODEL, and give MODEL."
            )
    trained = path / "tokenizer"
    if (path / "checkpoints").is_dir() and (trained / "config.json").is_file():
        raise JanusError(f"{path} is the folder of a training run, not of an image tokenizer; give {trained}.")


def open_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns all tensors of a checkpoint, by name.

    Args:
      path: A folder, a `.safetensors` file, a `.bin`, `.pt` or `.pth` file of torch, or an `*.index.json` of shards.

    Raises:
      JanusError: A file is missing, truncated, corrupt, or has an unsupported format. The message names the file.
    """
    with reading(path):
        file = find_weights(path)
    with reading(file):
        return _open(file)


def _open(file: Path) -> dict[str, np.ndarray]:
    if file.name.endswith(".index.json"):
        return _open_shards(file)
    if not file.stat().st_size:
        raise JanusError(f"{file} is empty; fetch it again.")
    with file.open("rb") as opened:
        check_lfs_pointer(file, opened.read(64))
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    if file.suffix in WEIGHT_SUFFIXES:
        return open_torch_zip(file)
    raise JanusError(f"{file} has an unsupported format; files with weights end in {', '.join(WEIGHT_SUFFIXES)}.")


def _open_safetensors(path: Path) -> dict[str, np.ndarray]:
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    size, length = mapped.size, int.from_bytes(mapped[:8].tobytes(), "little")
    if size < 8 or length > _MAX_HEADER_BYTES:
        raise JanusError(f"{path} is not a safetensors file; fetch it again.")
    if size < 8 + length:
        raise JanusError(f"{path} is truncated within its header; fetch it again.")
    header = json.loads(mapped[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    entries = {name: _entry(values) for name, values in header.items()}
    start, tensors = 8 + length, {}
    if (end := start + max((last for *_, last in entries.values()), default=0)) > size:
        raise JanusError(f"{path} is truncated: it has {size} bytes, but its header requires {end}; fetch it again.")
    for name, (kind, shape, first, last) in entries.items():
        if kind not in SAFETENSORS_DTYPES:
            raise JanusError(
                f"{path}: tensor {name} has the unsupported type {kind}; supported types are "
                f"{', '.join(SAFETENSORS_DTYPES)}."
            )
        dtype, count = SAFETENSORS_DTYPES[kind], math.prod(shape)
        if first < 0 or last - first != count * dtype.itemsize or min(shape, default=0) < 0:
            raise JanusError(f"{path} has a corrupt header: tensor {name} does not fit its bytes; fetch it again.")
        # numpy cannot create a view of an empty buffer.
        flat = np.frombuffer(mapped, dtype, count, start + first) if count else np.empty(0, dtype)
        tensors[name] = flat.reshape(shape)
    return tensors


def _entry(values: Mapping[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    first, last = values["data_offsets"]
    return values["dtype"], tuple(map(int, values["shape"])), int(first), int(last)


def shard_names(index: Path) -> list[str]:
    """Returns the names of the files that an `*.index.json` lists.

    Raises:
      JanusError: The file is damaged.
    """
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> Mapping[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(f, str) for f in weight_map.values()):
        raise JanusError(f"{index} has no weight_map of tensor names to files; fetch it again.")
    files = sorted(set(weight_map.values()))
    if strange := [f for f in files if Path(f).name != f or Path(f).suffix not in WEIGHT_SUFFIXES]:
        raise JanusError(f"{index} names {strange[0]!r}, which is not a weight file in its folder; fetch it again.")
    return weight_map


def _open_shards(index: Path) -> dict[str, np.ndarray]:
    weight_map, files = _weight_map(index), shard_names(index)
    if missing := [f for f in files if not (index.parent / f).is_file()]:
        raise JanusError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names; fetch them.")
    shards = {f: open_tensors(index.parent / f) for f in files}
    if lost := [name for name, f in weight_map.items() if name not in shards[f]]:
        raise JanusError(
            f"{index} names {len(lost)} tensors that are not in their files, among them {lost[0]} in "
            f"{weight_map[lost[0]]}; index and files belong to different checkpoints, fetch them again."
        )
    return {name: shards[f][name] for name, f in weight_map.items()}
