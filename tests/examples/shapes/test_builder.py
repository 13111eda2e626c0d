import io

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from examples.shapes.dataset import DEFAULT_VOCABULARY, ShapesDataset, Split
from examples.shapes.dataset.builder import Shapes, ShapesConfig, prepare_shapes
from janus_jax.data.records import Record
from janus_jax.processing import Task

COUNTS = {Split.TRAIN: 12, Split.TEST: 5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return prepare_shapes(tmp_path_factory.mktemp("shapes"), counts=COUNTS, image_size=32, seed=9)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("split", Split)
def test_tfds_datasets_contain_the_records_of_the_dataset(folders, task, split):
    source = tfds.builder_from_directory(str(folders[task])).as_data_source(split.value)
    found = {record.key: record for record in map(Record.from_example, source)}
    expected = {
        record.key: record for record in ShapesDataset(split, image_size=32, seed=9).records(task, COUNTS[split])
    }
    assert found.keys() == expected.keys()
    for key, record in found.items():
        assert record.task is task
        assert (record.text, record.messages, record.images) == (
            expected[key].text,
            expected[key].messages,
            expected[key].images,
        )


def test_images_have_the_requested_size(folders):
    source = tfds.builder_from_directory(str(folders[Task.GENERATION])).as_data_source("train")
    assert Image.open(io.BytesIO(Record.from_example(source[0]).images[0])).size == (32, 32)


def test_existing_datasets_are_kept(folders):
    files = {path: path.stat().st_mtime_ns for folder in folders.values() for path in folder.iterdir()}
    again = prepare_shapes(folders[Task.TEXT].parents[2], counts=COUNTS, image_size=32, seed=9)
    assert again == folders
    assert files == {path: path.stat().st_mtime_ns for folder in folders.values() for path in folder.iterdir()}


def test_different_settings_have_different_folders():
    names = {
        ShapesConfig(Task.TEXT).name,
        ShapesConfig(Task.UNDERSTANDING).name,
        ShapesConfig(Task.TEXT, seed=1).name,
        ShapesConfig(Task.TEXT, image_size=64).name,
        ShapesConfig(Task.TEXT, vocabulary=DEFAULT_VOCABULARY.with_extras("heart")).name,
        ShapesConfig(Task.TEXT, counts=COUNTS).name,
    }
    assert len(names) == 6


def test_tasks_are_registered_by_name(tmp_path):
    assert set(Shapes.builder_configs) == {"text", "understanding", "generation"}
    builder = Shapes(config="text", data_dir=str(tmp_path))
    assert builder.builder_config.task is Task.TEXT
    assert builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD
