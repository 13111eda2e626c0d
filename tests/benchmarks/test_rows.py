"""The rows that the training benchmark times: what is in them, and how full they are."""

import numpy as np
import pytest

from benchmarks.rows import IMAGE, Layout, Sample, batch_of, unlike_rows
from benchmarks.train import NARROW, SMALL, SMALL_ROWS
from janus_jax.batch import NO_IMAGE, NO_POSITION
from janus_jax.errors import JanusError


def test_alike_rows_are_full_of_samples_of_one_length():
    batch = SMALL_ROWS.batch(SMALL, 2)
    assert np.all(batch.segment_ids > 0)
    lengths = {int((row == number).sum()) for row in batch.segment_ids for number in np.unique(row)}
    assert lengths == {256}


def test_unlike_rows_are_nearly_full_of_samples_that_differ():
    rows = unlike_rows(SMALL, 8, 512)
    samples = [sample for row in rows for sample in row]
    lengths = [sample.length(SMALL) for sample in samples]
    assert 0.95 < sum(lengths) / (8 * 512) <= 1
    # As in the stream: none is left out for its length.
    assert 0.4 < sum(sample.image == "und" for sample in samples) / len(samples) < 0.6
    assert max(lengths) > 1.5 * sum(lengths) / len(lengths) > 3 * min(lengths)


def test_every_text_but_a_sample_s_first_word_is_learnt():
    rows = [[Sample(3, 4, "und"), Sample(2, 0, "gen"), Sample(5)], [Sample(6)]]
    batch = batch_of(NARROW, rows, 128)
    learnt = [set(row[row != NO_POSITION]) for row in batch.text_targets]
    text = (batch.segment_ids > 0) & (batch.tokens != IMAGE)
    assert [len(row) for row in learnt] == [2 + 4 + 1 + 4, 5]
    for row, places in enumerate(learnt):
        assert all(text[row, place] and batch.positions[row, place] > 0 for place in places)


def test_image_places_name_the_patches_of_their_image():
    rows = [[Sample(3, 1, "und"), Sample(3, 1, "und"), Sample(2, 0, "gen")], [Sample(4)]]
    batch = batch_of(NARROW, rows, 128)
    shown, drawn = NARROW.und_encoder.num_patches, NARROW.gen_encoder.num_tokens
    filled = batch.und_patch_index[0][batch.und_patch_index[0] != NO_IMAGE]
    np.testing.assert_array_equal(filled, np.arange(2 * shown))
    start = batch.gen_starts[0, 0]
    np.testing.assert_array_equal(batch.gen_token_index[0, start : start + drawn], np.arange(drawn))
    assert batch.gen_starts[1, 0] == NO_POSITION
    assert batch.und_images.shape[:2] == (2, 2)


def test_a_row_that_is_too_short_is_refused():
    with pytest.raises(JanusError, match="32 places are too few"):
        Layout(places=32, und_images=2, gen_images=0, prompt=8, answer=8).batch(NARROW, 1)
