"""Batches of images depend on the seed and the position only, not on the numbers of processes and workers."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from janus_jax.data.pipeline.dataset import Component
from janus_jax.data.records import Record
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from janus_jax.training.array_batches import ArrayBatches, BatchSplit
from janus_jax.training.image_tokenizer import images as module
from janus_jax.training.image_tokenizer.images import center_crops, hold_out, image_batches, random_crop
from janus_jax.training.image_tokenizer.recipe import ImageData

DATA = ImageData(directories=("unused",), workers=0)
ARRAY = np.arange(16 * 12, dtype=np.uint8).reshape(16, 2, 2, 3)


def encoded(number, size=(20, 14)):
    pixels = np.full((size[1], size[0], 3), (number * 10, 255 - number * 10, 60), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def component(count=10, broken=()):
    images = [(b"no image",) if i in broken else (encoded(i),) for i in range(count)]
    return (
        Component("images", [Record(f"r{i}", Task.GENERATION, "text", images=one) for i, one in enumerate(images)]),
    )


@pytest.fixture
def records(monkeypatch):
    """Returns a function that makes iterators over ten records in memory."""

    def make(split, broken=(), **changes):
        monkeypatch.setattr(module, "components_of", lambda directories, split, name: component(broken=broken))
        return image_batches(replace(DATA, **changes), 8, split)

    return make


def numbers(batch):
    """Returns the record number of each crop, which determines its color."""
    return (batch[0][:, 0, 0, 0] // 10).tolist()


def split(batch_size, seed, process_index=0, process_count=1):
    return BatchSplit(batch_size, seed, process_index, process_count)


@pytest.mark.parametrize("kind", ["array", "records"])
def test_a_restored_position_gives_the_same_batches(kind, records):
    make = records if kind == "records" else lambda split: ArrayBatches([ARRAY], split)
    first = make(split(4, seed=1))
    for _ in range(3):
        next(first)
    state = first.get_state()
    expected = [next(first)[0] for _ in range(4)]
    second = make(split(4, seed=1))
    next(second)
    second.set_state(state)
    np.testing.assert_array_equal([next(second)[0] for _ in range(4)], expected)


def test_processes_share_batches_of_arrays():
    whole = next(ArrayBatches([ARRAY], split(4, seed=1)))[0]
    parts = [next(ArrayBatches([ARRAY], split(4, 1, index, 2)))[0] for index in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_an_epoch_has_every_record_once_over_all_processes(records):
    streams = [records(split(10, 0, index, 2)) for index in range(2)]
    assert sorted(number for stream in streams for number in numbers(next(stream))) == list(range(10))


def test_worker_processes_do_not_change_batches(records):
    inline, parallel = (records(split(4, seed=1), workers=workers) for workers in (0, 1))
    try:
        for _ in range(4):
            np.testing.assert_array_equal(next(parallel)[0], next(inline)[0])
    finally:
        parallel.close()


def test_records_without_a_readable_image_are_skipped(records):
    assert sorted(numbers(next(records(split(9, seed=0), broken={3})))) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_too_many_rejected_records_stop_the_training(records):
    with pytest.raises(JanusError, match="records were rejected"):
        next(records(split(4, seed=0), broken=range(10), max_rejected=0.01))


def test_positions_of_other_data_are_refused(records):
    state = records(split(4, seed=0)).get_state()
    with pytest.raises(JanusError, match="process_count = 1, now it is 2"):
        records(split(4, 0, 0, 2)).set_state(state)
    with pytest.raises(JanusError, match="another kind of data"):
        ArrayBatches([ARRAY], split(4, seed=0)).set_state(state)


def test_unsuitable_batch_sizes_are_refused():
    with pytest.raises(JanusError, match="batch_size is 5"):
        split(5, 0, 0, 2)
    with pytest.raises(JanusError, match="hold 16, 3 examples"):
        ArrayBatches([ARRAY, ARRAY[:3]], split(2, 0))
    with pytest.raises(JanusError, match=r"16 training examples, fewer than config\.batch_size 17; .* at most 16"):
        ArrayBatches([ARRAY], split(17, 0))


def test_crops_are_squares_of_most_of_the_image():
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (40, 100, 3))
    rng = np.random.default_rng(0)
    crops = [random_crop(Image.fromarray(ramp), 40, rng, flip=False).astype(int) for _ in range(20)]
    widths = [crop[20, -1, 0] - crop[20, 0, 0] for crop in crops]
    assert all(30 <= width <= 40 for width in widths)
    assert len({crop[20, 0, 0] for crop in crops}) > 5


def test_evaluation_uses_the_first_readable_images():
    assert numbers((center_crops(component(broken={0}), 8, 3),)) == [1, 2, 3]
    with pytest.raises(JanusError, match="no readable image"):
        center_crops(component(2, broken={0, 1}), 8, 3)


@pytest.mark.parametrize(
    ("data", "splits"),
    [
        (ImageData(), ("train[5%:]", "train[:5%]")),
        (ImageData(eval_directories=("validation",)), ("train", "train")),
        (ImageData(split="train[9:]", eval_split="train[:9]"), ("train[9:]", "train[:9]")),
    ],
)
def test_evaluation_images_are_not_trained_on(data, splits):
    assert (data.training_split, data.evaluation_split) == splits


@pytest.mark.parametrize(("count", "held_out"), [(562, 28), (12, 1), (2, 1), (40_000, 1000)])
def test_some_images_in_memory_are_held_out(count, held_out):
    images = np.arange(count).reshape(-1, 1, 1, 1)
    train, evaluation = hold_out(images, 1000)
    assert len(evaluation) == held_out
    np.testing.assert_array_equal(np.concatenate([evaluation, train]), images)


def test_a_single_image_in_memory_is_not_enough():
    with pytest.raises(JanusError, match="1 images are given"):
        hold_out(ARRAY[:1], 1000)
