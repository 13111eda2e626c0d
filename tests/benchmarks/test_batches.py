import numpy as np
import pytest

from benchmarks.batches import IMAGE, Example, equal_sequences, make_batch, unequal_sequences
from benchmarks.train import NARROW, SMALL
from janus_jax.batch import NO_IMAGE, NO_POSITION
from janus_jax.errors import JanusError


def test_unequal_sequences_are_nearly_full_of_different_examples():
    sequences = unequal_sequences(SMALL, 8, 512)
    examples = [example for sequence in sequences for example in sequence]
    lengths = [example.length(SMALL) for example in examples]
    assert 0.95 < sum(lengths) / (8 * 512) <= 1
    # As in the stream, half of the examples have an image: none is left out for its length.
    assert 0.4 < sum(example.image == "und" for example in examples) / len(examples) < 0.6
    assert max(lengths) > 1.5 * sum(lengths) / len(lengths) > 3 * min(lengths)


def test_all_text_except_first_tokens_is_a_target():
    sequences = [[Example(3, 4, "und"), Example(2, 0, "gen"), Example(5)], [Example(6)]]
    batch = make_batch(NARROW, sequences, 128)
    targets = [set(row[row != NO_POSITION]) for row in batch.text_targets]
    is_text = (batch.segment_ids > 0) & (batch.tokens != IMAGE)
    assert [len(row) for row in targets] == [2 + 4 + 1 + 4, 5]
    for row, found in enumerate(targets):
        assert all(is_text[row, position] and batch.positions[row, position] > 0 for position in found)


def test_image_positions_index_the_patches_of_their_image():
    sequences = [[Example(3, 1, "und"), Example(3, 1, "und"), Example(2, 0, "gen")], [Example(4)]]
    batch = make_batch(NARROW, sequences, 128)
    patches, tokens = NARROW.und_encoder.num_patches, NARROW.gen_encoder.num_tokens
    filled = batch.und_patch_index[0][batch.und_patch_index[0] != NO_IMAGE]
    np.testing.assert_array_equal(filled, np.arange(2 * patches))
    start = batch.gen_starts[0, 0]
    np.testing.assert_array_equal(batch.gen_token_index[0, start : start + tokens], np.arange(tokens))
    assert batch.gen_starts[1, 0] == NO_POSITION
    assert batch.und_images.shape[:2] == (2, 2)


def test_too_short_sequence_raises():
    with pytest.raises(JanusError, match="32 tokens are too few"):
        equal_sequences(NARROW, 1, 32, und_images=2, gen_images=0, prompt=8, answer=8)
