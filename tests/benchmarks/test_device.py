"""Runs the script for a GPU end to end, with a tiny model on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ABSENT = ("ml_collections", "tensorflow_datasets", "array_record", "grain", "tensorboardX", "transformers")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "device.sh"


@pytest.mark.slow
def test_script_measures_all_parts_without_the_packages_of_training(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ABSENT:
        (blocked / f"{name}.py").write_text("raise ImportError")
    settings = {"MODELS": "tiny", "BATCHES": "1", "WINDOWS": "2", "DTYPE": "float32", "LIMIT": "120", "TORCH": "false"}
    environment = os.environ | settings | {"PYTHON": sys.executable, "PYTHONPATH": str(blocked)}
    done = subprocess.run([SCRIPT, tmp_path / "out"], env=environment, capture_output=True, text=True, timeout=180)
    errors = "".join(file.read_text() for file in (tmp_path / "out").glob("*.err"))
    parts = json.loads(done.stdout.splitlines()[-1])
    assert [part["part"] for part in parts] == ["generate_tiny_none", "generate_tiny_int8", "inference_tiny"], errors
    assert parts == json.loads((tmp_path / "out" / "device.json").read_text())
    full, quantized = (part["weight_bytes"] for part in parts[:2])
    assert quantized < full / 2
    assert all(run["seconds"] > 0 for part in parts[:2] for run in part["runs"])
    assert parts[2]["siglip_ms"] > 0
