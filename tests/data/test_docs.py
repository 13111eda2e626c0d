"""Runs the examples of docs/data.md in a folder with the files that they use."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from janus_jax.config import preset
from tests.data.prepared import write_tfds
from tests.data.samples import image, read_back
from tests.pseudo import CORPUS, make_checkpoint

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

# Texts of the records of each example, or the answers of its conversations.
TEXTS = {
    "captions": ["A cat on a mat.", "A small red boat. It lies on a quiet lake."],
    "described": ["A cat, on a mat."],
    "parquet": ["A cat.", "A dog."],
    "chat": ["A cat.", "A cat and a dog."],
    "edits": ["Turn the cat into a dog.", "Put both into a boat."],
    "edit_tars": ["Turn the cat into a dog."],
    "folder": ["red", "cat", "dog"],
    "pairs": ["A cat on a mat.", "A dog in the grass."],
    "imagenet": ["tench, Tinca tinca", "goldfish, Carassius auratus"],
    "text": ["Once upon a time there was a lake.", "A boat lay on it."],
    "beam": ["Once upon a time there was a lake.", "A boat lay on it."],
    "with_tokens": ["A cat on a mat.", "A small red boat. It lies on a quiet lake."],
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder of photos, a small ImageNet and a small model, in which all examples have run."""
    workspace = tmp_path_factory.mktemp("workspace")
    (workspace / "photos" / "boats").mkdir(parents=True)
    for number, name in enumerate(("cat.jpg", "dog.jpg")):
        (workspace / "photos" / name).write_bytes(image(number))
    Image.new("RGB", (30, 20), "red").save(workspace / "photos" / "boats" / "red.png")
    make_checkpoint(workspace / "Janus-Pro-1B", preset("tiny"), CORPUS)
    make_imagenet(workspace)
    command = workspace / "bin" / "janus-prepare"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launch.prepare "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    for kind, lines in BLOCKS:
        program = ["bash", "-euc", lines] if kind == "bash" else [sys.executable, "-c", lines]
        done = subprocess.run(
            program, cwd=workspace, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
    return workspace


def make_imagenet(workspace):
    """Writes two images as TFDS prepares ImageNet."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = tfds.builder("imagenet2012", data_dir=workspace, try_gcs=False).info.features
    serialize = ExampleSerializer(features.get_serialized_info()).serialize_example
    paths = [workspace / "photos" / name for name in ("cat.jpg", "dog.jpg")]
    examples = [{"image": path, "label": label, "file_name": path.name} for label, path in enumerate(paths)]
    contents = [serialize(features.encode_example(example)) for example in examples]
    folder = workspace / "tensorflow_datasets" / "imagenet2012" / "5.1.0"
    write_tfds(folder, "imagenet2012", features, contents, version="5.1.0")
    captions = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"}
    lines = [f"{name} {captions.get(name, 'unknown')}\n" for name in features["label"].names]
    (workspace / "LOC_synset_mapping.txt").write_text("".join(lines))


@pytest.mark.nightly
@pytest.mark.parametrize("name", TEXTS)
def test_an_example_prepares_its_records(workspace, name):
    records = read_back(workspace / "prepared" / name)
    assert [record.text or record.messages[-1]["content"] for record in records] == TEXTS[name]


def test_the_tests_of_the_guarantees_exist():
    rows = re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGE)
    assert len(rows) == 14
    for file, name in rows:
        assert f"def {name}(" in (ROOT / file).read_text(), name
