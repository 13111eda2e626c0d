"""docs/data.md says what runs: its examples are run as they stand, in a folder that has what they name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from janus_jax.config import preset
from janus_jax.data.sources import SOURCES, RejectReason
from tests.data.samples import image, read_back
from tests.pseudo import CORPUS, make_checkpoint

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = dict(section.split("\n", 1) for section in PAGE.split("\n## ")[1:])
SOURCES_PART = SECTIONS["Sources"] + SECTIONS["Preparing"]
EVERY_PART = PAGE.partition("\n## Sources\n")[2]
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", EVERY_PART, re.MULTILINE | re.DOTALL)

# What each example leaves: the texts of its records, or the answers of their conversations.
LEAVES = {
    "captions": ["A cat on a mat.", "A small red boat. It lies on a quiet lake."],
    "described": ["A cat, on a mat."],
    "parquet": ["A cat.", "A dog."],
    "chat": ["A cat.", "A cat and a dog."],
    "pairs": ["A cat on a mat.", "A dog in the grass."],
    "imagenet": ["tench, Tinca tinca", "goldfish, Carassius auratus"],
    "text": ["Once upon a time there was a lake.", "A boat lay on it."],
    "haiku": ["An old silent pond.\nA frog jumps into the pond:\nSplash! Silence again.\n"],
    "beam": ["Once upon a time there was a lake.", "A boat lay on it."],
    "with_ids": ["A cat on a mat.", "A small red boat. It lies on a quiet lake."],
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder of photographs, a small ImageNet and a small model, in which every example has been run."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "photos" / "boats").mkdir(parents=True)
    for number, name in enumerate(("cat.jpg", "dog.jpg")):
        (desk / "photos" / name).write_bytes(image(number))
    Image.new("RGB", (30, 20), "red").save(desk / "photos" / "boats" / "red.png")
    make_checkpoint(desk / "Janus-Pro-1B", preset("tiny"), CORPUS)
    make_imagenet(desk)
    shims = desk / "bin"
    shims.mkdir()
    (shims / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (shims / "python").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    for kind, lines in BLOCKS:
        named = re.match(r"# (\w+\.py)\n", lines)
        if named:
            (desk / named[1]).write_text(lines)
            continue
        command = ["bash", "-euc", lines] if kind == "bash" else [sys.executable, "-c", lines]
        done = subprocess.run(
            command, cwd=desk, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
    return desk


def make_imagenet(desk):
    """Two images, in the form in which TFDS prepares ImageNet."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = tfds.builder("imagenet2012", data_dir=desk, try_gcs=False).info.features
    folder = desk / "tensorflow_datasets" / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="imagenet2012", split="train", filetype_suffix="array_record"
    )
    writer = ArrayRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1")
    serialize = ExampleSerializer(features.get_serialized_info()).serialize_example
    for label in range(2):
        path = desk / "photos" / ("cat.jpg", "dog.jpg")[label]
        writer.write(serialize(features.encode_example({"image": path, "label": label, "file_name": path.name})))
    writer.close()
    split = tfds.core.SplitInfo(name="train", shard_lengths=[2], num_bytes=1, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=[split], version="5.1.0", check_data=False
    )
    words = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"}
    names = features["label"].names
    (desk / "LOC_synset_mapping.txt").write_text("".join(f"{name} {words.get(name, 'a thing')}\n" for name in names))


def test_every_example_is_known():
    assert set(re.findall(r"--output prepared/(\w+)", SOURCES_PART)) == set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_an_example_leaves_what_it_shows(desk, name):
    records = read_back(desk / "prepared" / name)
    assert [record.text or record.messages[-1]["content"] for record in records] == LEAVES[name]


def test_the_ids_are_there(desk):
    assert all(
        len(record.image_tokens) == preset("tiny").gen_encoder.num_tokens
        for record in read_back(desk / "prepared" / "with_ids")
    )


def test_the_first_lines_of_the_page_open_what_the_examples_made(desk):
    (lines,) = re.findall(r"^```python\n(.*?)^```", PAGE.partition("\n## Sources\n")[0], re.MULTILINE | re.DOTALL)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=desk, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("2 Record(key='captions.jsonl:1'")


def test_every_kind_and_every_reason_is_described():
    assert {kind for kind in SOURCES if kind in ("captions", "llava", "webdataset", "tfds", "text")} == set(
        re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)
    ) & set(SOURCES)
    assert set(re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE)) >= {reason.value for reason in RejectReason}


def test_examples_are_short():
    formats = PAGE.partition("### captions")[2].partition("### A source of your own")[0]
    blocks = re.findall(r"^```(?:python|bash)\n(.*?)^```", formats, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    assert all(len(block.splitlines()) <= 5 for block in blocks)
