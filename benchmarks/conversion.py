"""Measures time and memory of converting a checkpoint, compared with copying its files.

    python -m benchmarks.conversion --preset janus_pro_7b --dir /big/disk

The benchmark creates a checkpoint in the released layout with the shapes of the preset and random values. Then it
alternately copies and converts the checkpoint. Each run starts with a cold page cache and ends when all files are on
the disk. The last line is a JSON object with all results. Anonymous memory (RssAnon of the converting process, sampled
every 50 ms) does not include pages of the mapped files, which belong to the page cache.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import ml_dtypes
import numpy as np
from absl import flags

from checkpoints_convert import released
from checkpoints_convert.safetensors_writer import SafetensorsWriter
from janus_jax.commands import cli
from janus_jax.config import janus_preset

_PRESET = flags.DEFINE_string("preset", "janus_pro_7b", "model whose shapes the checkpoint has")
_DIR = flags.DEFINE_string("dir", None, "folder with space for three checkpoints (default: the temporary folder)")
_ROUNDS = flags.DEFINE_integer("rounds", 2, "number of copies and of conversions", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "keep", ["keep", "bfloat16", "float32"], "dtype of the stored parameters")
_MAX_SHARD = 5_000_000_000
_SAMPLE_SECONDS = 0.05


def make_checkpoint(folder: Path, preset: str) -> int:
    """Writes a checkpoint of random bfloat16 values in the released layout, in shards.

    Returns:
      Its size in bytes.
    """
    folder.mkdir()
    config, dtype = janus_preset(preset), np.dtype(ml_dtypes.bfloat16)
    manifest = released.manifest(config)
    # This mask limits values to (-2, 2), without infinities. They are as hard to compress as real weights.
    bits = np.random.default_rng(0).integers(0, 1 << 16, 1 << 24, np.uint16) & np.uint16(0xBFFF)
    with SafetensorsWriter(folder, {name: (shape, dtype) for name, shape in manifest.items()}, _MAX_SHARD) as writer:
        for name, shape in manifest.items():
            writer.write(name, np.resize(bits, shape).view(dtype))
    (folder / "config.json").write_text(json.dumps(released.config_to_json(config, "bfloat16")))
    return sum(file.stat().st_size for file in folder.iterdir())


def drop_from_page_cache(folder: Path) -> None:
    """Flushes pending writes and drops the folder's files from the page cache, so that they are read from the disk."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def anonymous_bytes(process: int) -> int:
    """Returns the anonymous memory of a process, or 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def copy_seconds(source: Path, target: Path) -> tuple[float, float]:
    """Returns the seconds until `cp` ended, and the seconds until all its files were on the disk."""
    begin = time.monotonic()
    subprocess.run(["cp", "-r", source, target], check=True)
    copied = time.monotonic() - begin
    os.sync()
    return copied, time.monotonic() - begin


def convert_seconds(source: Path, target: Path, dtype: str) -> tuple[float, int]:
    """Returns the seconds that janus-convert takes, and its largest anonymous memory in bytes."""
    begin, peak = time.monotonic(), 0
    command = [sys.executable, "-m", "launch.convert", str(source), str(target), f"--dtype={dtype}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(_SAMPLE_SECONDS)
        errors = process.stderr.read().decode() if process.stderr else ""
    if process.returncode:
        raise RuntimeError(errors)
    return time.monotonic() - begin, peak


def main(_: Sequence[str]) -> None:
    """Prints a table and a line of JSON."""
    with tempfile.TemporaryDirectory(prefix="conversion-", dir=_DIR.value) as name:
        folder = Path(name)
        source = folder / "Janus-Pro"
        size = make_checkpoint(source, _PRESET.value)
        runs = []
        for _round in range(_ROUNDS.value):
            drop_from_page_cache(source)
            copied, durable = copy_seconds(source, folder / "copy")
            shutil.rmtree(folder / "copy")
            drop_from_page_cache(source)
            converted, peak = convert_seconds(source, folder / "converted", _DTYPE.value)
            shutil.rmtree(folder / "converted")
            runs.append((copied, durable, converted, peak))
            print(
                f"copy {copied:6.1f} s ({durable:.1f} s on disk)   convert {converted:6.1f} s   {peak / 2**30:.2f} GiB"
            )
    copies, durables, conversions, peaks = zip(*runs, strict=True)
    figures = {
        "preset": _PRESET.value,
        "dtype": _DTYPE.value,
        "gigabytes": size / 1e9,
        "copy_seconds": median(copies),
        "copy_on_disk_seconds": median(durables),
        "convert_seconds": median(conversions),
        "convert_over_copy": median(conversions) / median(copies),
        "convert_over_copy_on_disk": median(conversions) / median(durables),
        "peak_anonymous_gib": max(peaks) / 2**30,
    }
    for name, value in figures.items():
        print(f"{name:28} {value:.3f}" if isinstance(value, float) else f"{name:28} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    cli.run(main)
