import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(module, *arguments):
    command = [sys.executable, "-m", f"checkpoints_convert.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)


def test_there_and_back_by_the_commands(released_folder, tmp_path):
    there = run("from_pytorch", released_folder, tmp_path / "converted", "--dtype", "bfloat16")
    assert there.returncode == 0, there.stderr
    assert "released layout" in there.stdout
    assert "14 tensors that no network here uses" in there.stdout
    assert "100%" in there.stderr
    back = run("to_pytorch", tmp_path / "converted", tmp_path / "back", "--layout=transformers")
    assert back.returncode == 0, back.stderr
    assert "transformers layout" in back.stdout


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        ("from_pytorch", ["nowhere", "out"], "nowhere does not exist"),
        ("from_pytorch", ["one"], "SRC DST"),
        ("to_pytorch", ["a", "b"], "layout is required"),
        ("to_pytorch", ["a", "b", "--layout=other"], "<released|transformers>"),
        ("to_pytorch", ["a", "b", "--layout=released", "--shard_gb=nan"], "must be a number of at least 0.001"),
        ("to_pytorch", ["nowhere", "out", "--layout=released"], "nowhere/config.json does not exist"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(module, arguments, sentence):
    done = run(module, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
