import io

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from examples.shapes.dataset import DEFAULT, Split, World
from examples.shapes.dataset.builder import Shapes, ShapesConfig, prepare_shapes
from janus_jax.data.records import Record
from janus_jax.processing import Task

COUNTS = {Split.TRAIN: 12, Split.TEST: 5}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return prepare_shapes(tmp_path_factory.mktemp("shapes"), counts=COUNTS, image_size=32, seed=9)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("split", Split)
def test_a_data_set_holds_the_worlds_records(places, task, split):
    source = tfds.builder_from_directory(str(places[task])).as_data_source(split.value)
    found = {record.key: record for record in map(Record.from_example, source)}
    expected = {record.key: record for record in World(split, image_size=32, seed=9).records(task, COUNTS[split])}
    assert found.keys() == expected.keys()
    for key, record in found.items():
        assert record.task is task
        assert (record.text, record.messages, record.images) == (
            expected[key].text,
            expected[key].messages,
            expected[key].images,
        )


def test_pictures_have_the_size_that_is_asked_for(places):
    source = tfds.builder_from_directory(str(places[Task.GENERATION])).as_data_source("train")
    assert Image.open(io.BytesIO(Record.from_example(source[0]).images[0])).size == (32, 32)


def test_what_is_there_is_not_made_again(places):
    files = {path: path.stat().st_mtime_ns for place in places.values() for path in place.iterdir()}
    again = prepare_shapes(places[Task.TEXT].parents[2], counts=COUNTS, image_size=32, seed=9)
    assert again == places
    assert files == {path: path.stat().st_mtime_ns for place in places.values() for path in place.iterdir()}


def test_other_settings_lie_in_other_folders():
    names = {
        ShapesConfig(Task.TEXT).name,
        ShapesConfig(Task.UNDERSTANDING).name,
        ShapesConfig(Task.TEXT, seed=1).name,
        ShapesConfig(Task.TEXT, image_size=64).name,
        ShapesConfig(Task.TEXT, vocabulary=DEFAULT.with_extras("heart")).name,
        ShapesConfig(Task.TEXT, counts=COUNTS).name,
    }
    assert len(names) == 6


def test_tasks_are_known_by_name(tmp_path):
    assert set(Shapes.builder_configs) == {"text", "understanding", "generation"}
    builder = Shapes(config="text", data_dir=str(tmp_path))
    assert builder.builder_config.task is Task.TEXT
    assert builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD
