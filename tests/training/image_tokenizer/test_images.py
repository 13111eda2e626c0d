"""Batches follow from the seed and their number, whoever reads them and wherever they begin."""

import io

import numpy as np
import pytest
from PIL import Image

from janus_jax.data.pipeline.dataset import Component
from janus_jax.data.records import Record
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from janus_jax.training.image_tokenizer.images import RecordImages, Split, WorldImages, middle_crops, random_crop


def encoded(number, size=(20, 14)):
    pixels = np.full((size[1], size[0], 3), (number * 10, 255 - number * 10, 60), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def records(count, broken=()):
    return [
        Record(f"r{i}", Task.GENERATION, "text", images=(b"no image",) if i in broken else (encoded(i),))
        for i in range(count)
    ]


def component(count=10, broken=()):
    return [Component("pictures", records(count, broken))]


def numbers(batch):
    """Which record each crop is of: the pictures are of one colour each."""
    return (batch[:, 0, 0, 0] // 10).tolist()


STREAMS = {
    "world": lambda split: WorldImages(24, 16, split),
    "records": lambda split: RecordImages(component(), 8, split),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_restored_stream_goes_on_where_it_was(kind):
    first = STREAMS[kind](Split(4, seed=1))
    for _ in range(3):
        next(first)
    state = first.get_state()
    expected = [next(first) for _ in range(4)]
    second = STREAMS[kind](Split(4, seed=1))
    next(second)
    second.set_state(state)
    np.testing.assert_array_equal([next(second) for _ in range(4)], expected)


def test_processes_share_the_worlds_batches():
    whole = next(WorldImages(24, 16, Split(4, seed=1)))
    parts = [next(WorldImages(24, 16, Split(4, 1, index, 2))) for index in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_an_epoch_holds_every_picture_once_over_all_processes():
    streams = [RecordImages(component(), 8, Split(10, 0, index, 2)) for index in range(2)]
    assert sorted(number for stream in streams for number in numbers(next(stream))) == list(range(10))


def test_worker_processes_change_nothing():
    alone, helped = (RecordImages(component(), 8, Split(4, seed=1), workers) for workers in (0, 1))
    try:
        for _ in range(4):
            np.testing.assert_array_equal(next(helped), next(alone))
    finally:
        helped.close()


def test_records_without_a_readable_image_are_passed_over():
    stream = RecordImages(component(broken={3}), 8, Split(9, seed=0))
    assert sorted(numbers(next(stream))) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_too_many_of_them_stop_it():
    stream = RecordImages(component(broken=range(10)), 8, Split(4, seed=0), max_rejected=0.01)
    with pytest.raises(JanusError, match="records were rejected"):
        next(stream)


def test_a_position_of_another_run_is_refused():
    state = RecordImages(component(), 8, Split(4, seed=0)).get_state()
    with pytest.raises(JanusError, match="process_count = 1, now it is 2"):
        RecordImages(component(), 8, Split(4, 0, 0, 2)).set_state(state)
    with pytest.raises(JanusError, match="another kind of data"):
        WorldImages(24, 4, Split(4, seed=0)).set_state(state)


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(JanusError, match="batch_size 5"):
        Split(5, 0, 0, 2)


def test_crops_are_squares_of_most_of_the_image():
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (40, 100, 3))
    rng = np.random.default_rng(0)
    crops = [random_crop(Image.fromarray(ramp), 40, rng, flip=False).astype(int) for _ in range(20)]
    widths = [crop[20, -1, 0] - crop[20, 0, 0] for crop in crops]
    assert all(30 <= width <= 40 for width in widths)
    assert len({crop[20, 0, 0] for crop in crops}) > 5


def test_evaluation_is_on_the_first_readable_images():
    assert numbers(middle_crops(component(broken={0}), 8, 3)) == [1, 2, 3]
    with pytest.raises(JanusError, match="no readable image"):
        middle_crops(component(2, broken={0, 1}), 8, 3)
