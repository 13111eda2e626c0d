"""Runs the script for an accelerator end to end, with a tiny model on the CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ABSENT = ("ml_collections", "tensorflow_datasets", "array_record", "grain", "tensorboardX", "transformers")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "device.sh"


@pytest.mark.nightly
def test_script_measures_all_parts_without_the_packages_of_training(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ABSENT:
        (blocked / f"{name}.py").write_text("raise ImportError")
    settings = {"MODELS": "tiny", "BATCHES": "1", "WINDOWS": "2", "TOKENS": "16", "DTYPE": "float32", "STAGES": "1"}
    settings |= {"LENGTH": "512", "LIMIT": "300", "BUDGET_PERCENT": "300", "TORCH": "false"}
    environment = os.environ | settings | {"PYTHON": sys.executable, "PYTHONPATH": str(blocked)}
    done = subprocess.run([SCRIPT, tmp_path / "out"], env=environment, capture_output=True, text=True, timeout=330)
    errors = "".join(file.read_text() for file in (tmp_path / "out").glob("*.err"))
    parts = json.loads(done.stdout.splitlines()[-1])
    names = ["generate_tiny_none", "generate_tiny_int8", "train_tiny_1", "inference_tiny", "image_tiny"]
    assert [part["part"] for part in parts] == names
    assert {part["state"] for part in parts} == {"done"}, errors
    assert parts == json.loads((tmp_path / "out" / "device.json").read_text())
    full, quantized = (part["weight_bytes"] for part in parts[:2])
    assert quantized < full / 2
    assert all(run["seconds"] > 0 for part in parts[:2] for run in part["runs"])
    assert parts[2]["stage_1_equal_ms"] > 0
    assert parts[3]["siglip_ms"] > 0
    assert parts[4]["token_ms"] > 0
    rows = [line for line in (tmp_path / "out" / "tables.md").read_text().splitlines() if line.startswith("| tiny")]
    assert len(rows) == 2 * 2 + 1 + 4


@pytest.mark.nightly
def test_a_part_over_its_budget_is_stopped_and_named(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        "case $2 in\n"
        "benchmarks.train) exec sleep 60;;\n"
        "benchmarks.inference) exit 3;;\n"
        "benchmarks.generate) exit 0;;\n"
        f'*) exec {sys.executable} "$@";;\n'
        "esac\n"
    )
    python.chmod(0o755)
    settings = {"MODELS": "tiny", "STAGES": "1", "PYTHON": str(python), "BUDGET_PERCENT": "5", "LIMIT": "60"}
    done = subprocess.run(
        [SCRIPT, tmp_path / "out"], env=os.environ | settings, capture_output=True, text=True, timeout=50
    )
    states = {part["part"]: part["state"] for part in json.loads(done.stdout.splitlines()[-1])}
    assert states["train_tiny_1"] == "stopped after 2 s"
    assert states["inference_tiny"] == "failed"
    assert states["generate_tiny_none"] == "done"
    assert "Incomplete parts: `train_tiny_1` (stopped after 2 s)" in done.stdout


def test_the_budgets_fit_the_limit(tmp_path):
    """Sums the budgets that the script prints if every part ends at once."""
    settings = {"PYTHON": "true", "LIMIT": "100000"}
    done = subprocess.run([SCRIPT, tmp_path], env=os.environ | settings, capture_output=True, text=True)
    budgets = [int(number) for number in re.findall(r"at most (\d+) s", done.stdout)]
    assert len(budgets) == 10
    assert sum(budgets) <= 530
