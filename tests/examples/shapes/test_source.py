"""The data source of the shapes dataset."""

import pytest

from examples.shapes.dataset import ShapesDataset
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from tests.data.test_sources import prepare

SOURCE = "examples.shapes.source:shapes"


def test_prepared_records_are_those_of_the_dataset(tmp_path):
    read = prepare(tmp_path / "out", SOURCE, "train:7,seed=3", shard_records=3)
    assert not read.rejections
    dataset = ShapesDataset(seed=3)
    assert [record.text for record in read.records] == [dataset.record(Task.GENERATION, i).text for i in range(7)]


@pytest.mark.parametrize("task", Task)
def test_every_task_can_be_prepared(tmp_path, task):
    read = prepare(tmp_path / "out", SOURCE, "test:2", task=task)
    assert {record.task for record in read.records} == {task}


def test_settings_restrict_the_scenes(tmp_path):
    read = prepare(tmp_path / "out", SOURCE, "train:9,about=heart,categories=single_object")
    assert all("heart" in record.text for record in read.records)


@pytest.mark.parametrize(
    "given",
    [
        *("train", "train:none", "train:0", "dev:3", "train:3,side=4", "train:3,about=dog"),
        *("train:3,categories=none", "train:3,focus=none", "train:3,edits=none"),
    ],
)
def test_invalid_inputs_are_refused(tmp_path, given):
    with pytest.raises(JanusError, match="shapes"):
        prepare(tmp_path / "out", SOURCE, given)
