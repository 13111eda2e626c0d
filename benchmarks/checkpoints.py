"""Speed of saving and restoring a checkpoint on the local disk, against a plain copy of the same files.

    python -m benchmarks.checkpoints --folder /mnt/disk

A round saves a state, copies the files of the checkpoint (read, write, fsync), restores it, copies the files again, and
reads them into new memory, which a restore has to do, too. So all see the same load of the machine. Medians are
compared. The page cache is not dropped: all read files that were just written. The last line is one JSON object.
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from janus_jax.training.checkpointing import Checkpoints

_FOLDER = flags.DEFINE_string("folder", None, "folder on the disk to measure (default: the one for temporary files)")
_MEGABYTES = flags.DEFINE_integer("megabytes", 1000, "size of the state", lower_bound=100)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "rounds", lower_bound=1)

_ARRAY_BYTES = 50_000_000

Arrays = dict[str, jax.Array]


def main(_: Sequence[str]) -> None:
    """Measures and prints the medians."""
    logging.set_verbosity(logging.WARNING)
    # Random values, as trained weights: constant ones could be compressed.
    rng = np.random.default_rng(0)
    count = _MEGABYTES.value * 1_000_000 // _ARRAY_BYTES
    shape = (10, _ARRAY_BYTES // 40_000, 1000)
    state = {f"array_{i}": jnp.asarray(rng.standard_normal(shape, np.float32)) for i in range(count)}
    jax.block_until_ready(state)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    seconds: dict[str, list[float]] = {"blocking": [], "save": [], "restore": [], "copy": [], "read": []}
    for number in range(_ROUNDS.value + 1):
        with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
            found = _round(Path(folder), state, abstract)
        if number:  # The first round creates threads and buffers.
            for name, value in found.items():
                seconds[name].extend(value)
            print(" ".join(f"{name} {'/'.join(f'{one:.2f}' for one in value)} s" for name, value in found.items()))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    results = {
        f"{name}_gb_per_s": round(num_bytes / medians[name] / 1e9, 3) for name in ("save", "restore", "copy", "read")
    }
    results |= {f"{name}_ratio": round(medians["copy"] / medians[name], 2) for name in ("save", "restore")}
    results["restore_to_read_ratio"] = round(medians["read"] / medians["restore"], 2)
    results |= {"blocking_s": round(medians["blocking"], 3), "bytes": num_bytes, "rounds": _ROUNDS.value}
    print(json.dumps(results))


def _round(folder: Path, state: Arrays, abstract: Any) -> dict[str, list[float]]:
    saved = folder / "checkpoints" / "1"
    with Checkpoints(saved.parent) as checkpoints:

        def save() -> float:
            start = time.perf_counter()
            checkpoints.save(1, state, {}, {})
            blocking = time.perf_counter() - start
            checkpoints.wait()
            return blocking

        def restore() -> None:
            restored = checkpoints.restore(abstract)
            assert restored is not None
            jax.block_until_ready(restored.state)

        def read() -> None:
            for file in saved.rglob("*"):
                if file.is_file():
                    file.read_bytes()

        start = time.perf_counter()
        seconds = {"blocking": [save()]}
        seconds["save"] = [time.perf_counter() - start]
        seconds["copy"] = [_timed(lambda: _copy(saved, folder / "copy_1"))]
        seconds["restore"] = [_timed(restore)]
        seconds["copy"].append(_timed(lambda: _copy(saved, folder / "copy_2")))
        seconds["read"] = [_timed(read)]
    return seconds


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    for file in target.rglob("*"):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    app.run(main)
