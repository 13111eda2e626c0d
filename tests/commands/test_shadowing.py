"""Files in the user's folder hide neither our modules nor our recipes."""

import subprocess
import sys

import pytest

from tests.commands.conftest import environment

SCRIPT = "from janus_jax.commands.train import run\n\nrun()\n"
PREPARE_SCRIPT = "from janus_jax.commands.prepare import run\n\nif __name__ == '__main__':\n    run()\n"
WORKER_SCRIPT = """
import grain

from janus_jax.data.pipeline.loading import iterate
from janus_jax.data.pipeline.workers import WorkerWatch

if __name__ == "__main__":
    iterator, watch = iterate(grain.MapDataset.source([-3]).map(abs), workers=1), WorkerWatch()
    print(watch.call(iterator.__next__))
    watch.close(iterator.close)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder: every file in it raises an error when it is imported."""
    folder = tmp_path / "work"
    for name in ("launch.py", "finetune.py", "random.py", "configs/__init__.py", "configs/finetune.py", "numpy.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"raise RuntimeError('{name} is imported')\n")
    monkeypatch.chdir(folder)
    return folder


def test_an_installed_command_finds_our_recipes_and_modules(folder):
    script = folder.parent / "janus-train"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), "--config", "finetune", "--print_config"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "config.stages.stage_1.lora.rank = 16" in done.stdout


@pytest.mark.slow
def test_data_workers_find_our_modules(folder):
    script = folder.parent / "janus-count"
    script.write_text(WORKER_SCRIPT)
    done = subprocess.run([sys.executable, str(script)], cwd=folder, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


@pytest.mark.nightly
def test_processes_of_janus_prepare_find_our_modules(folder):
    script, documents = folder.parent / "janus-prepare", folder.parent / "documents.jsonl"
    script.write_text(PREPARE_SCRIPT)
    documents.write_text('{"text": "A boat."}\n' * 2)
    options = ["--source=text", f"--input={documents}", "--output=prepared", "--workers=2", "--shard_records=1"]
    command = [sys.executable, str(script), *options]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "prepared").glob("*.array_record-*"))) == 2
