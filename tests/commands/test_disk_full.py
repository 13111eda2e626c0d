"""Every command on a full disk: one sentence at the end, no tracebacks, exit code 74."""

import pytest

from janus_jax.errors import ExitCode
from tests.commands import test_evaluate as evaluate
from tests.commands import test_train as train
from tests.commands.conftest import run
from tests.data.samples import images, json_lines
from tests.training import runs


def prepare(folder):
    images(folder / "photos", 1)
    json_lines(folder / "c.jsonl", [{"image": "0.jpg", "caption": "A picture."}])
    return ("--source=captions", f"--input={folder / 'c.jsonl'}", f"--images={folder / 'photos'}", "--workers=1")


# Free space at which the command starts to write but cannot finish, and its arguments.
COMMANDS = {
    "train": ("700k", lambda disk, folder, model: train.command(disk / "run")[1:]),
    "prepare": ("8k", lambda disk, folder, model: (*prepare(folder), f"--output={disk / 'out'}")),
    "convert": ("300k", lambda disk, folder, model: (model, disk / "out")),
    "export": ("100k", lambda disk, folder, model: (f"--workdir={runs.finished()[0]}", f"--out={disk / 'out'}")),
    "evaluate": (
        "8k",
        lambda disk, folder, model: (
            *(f"--model={model}", "--benchmark=pope", f"--data={evaluate.write_pope(folder)}", f"--out={disk / 'out'}"),
            *("--dtype=float32", "--max_new_tokens=2"),
        ),
    ),
    "generate": (
        "4k",
        lambda disk, folder, model: (f"--model={model}", "--prompt=a lake", "--num_images=3", f"--out={disk / 'out'}"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_full_disk_ends_in_one_sentence(name, mount_disk, checkpoint, tmp_path):
    size, arguments = COMMANDS[name]
    disk = mount_disk(size)
    done = run(f"launch.{name}", *arguments(disk, tmp_path, checkpoint), **train.ONE_DEVICE)
    assert done.returncode == ExitCode.DISK_FULL, done.stderr
    *progress, sentence = done.stderr.splitlines()
    assert sentence.startswith(f"janus-{name}: {disk}")
    assert "free some space" in sentence
    assert len(progress) < 5, done.stderr
    assert "Traceback" not in done.stderr
