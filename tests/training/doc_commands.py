"""Runs the code blocks of a documentation page in a folder."""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_blocks(folder: Path, commands: Sequence[str], blocks: Iterable[tuple[str, str]]) -> list[str]:
    """Runs blocks one after the other and returns the output of each.

    Args:
      folder: The working folder.
      commands: Commands of the package that the blocks use, such as "janus-train".
      blocks: The language of each block, "bash" or "python", and its lines.
    """
    (folder / "bin").mkdir()
    for name in commands:
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launch.{name.removeprefix("janus-")} "$@"\n')
        script.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    printed = []
    for kind, lines in blocks:
        done = subprocess.run(
            ["bash", "-euc", lines] if kind == "bash" else [sys.executable, "-c", lines],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return printed
