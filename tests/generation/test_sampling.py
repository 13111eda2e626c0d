import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.generation.sampling import INVALID_TOKEN, SamplingConfig, check_sampled, sample_tokens, sampling_keys

LOGITS = jnp.log(jnp.array([0.05, 0.5, 0.25, 0.15, 0.05]))


def frequencies(sampling, count=20000):
    logits = jnp.broadcast_to(LOGITS, (count, LOGITS.size))
    ids = sample_tokens(logits, sampling_keys(0, 0, range(count)), 0, sampling.params, sampling.strategy)
    return np.bincount(ids, minlength=LOGITS.size) / count


def test_temperature_zero_takes_the_largest():
    assert frequencies(SamplingConfig(0.0), 10)[1] == 1


@pytest.mark.parametrize("sampling", [SamplingConfig(0.0), SamplingConfig(1.0), SamplingConfig(1.0, top_k=2)])
def test_logits_that_are_no_numbers_give_no_id(sampling):
    logits = jnp.stack([LOGITS, LOGITS.at[2].set(jnp.nan)])
    ids = np.asarray(sample_tokens(logits, sampling_keys(0, 0, range(2)), 0, sampling.params, sampling.strategy))
    assert ids[0] != INVALID_TOKEN
    assert ids[1] == INVALID_TOKEN
    check_sampled(ids[:1])
    with pytest.raises(JanusError, match="logits are NaN"):
        check_sampled(ids)


def test_temperature_one_draws_by_probability():
    np.testing.assert_allclose(frequencies(SamplingConfig(1.0)), np.exp(LOGITS), atol=0.015)


def test_temperature_sharpens():
    expected = np.exp(np.asarray(LOGITS) / 0.5)
    np.testing.assert_allclose(frequencies(SamplingConfig(0.5)), expected / expected.sum(), atol=0.015)


def test_top_k_draws_from_the_k_largest():
    np.testing.assert_allclose(frequencies(SamplingConfig(1.0, top_k=2)), [0, 2 / 3, 1 / 3, 0, 0], atol=0.015)


def test_a_top_k_beyond_the_vocabulary_draws_from_all():
    np.testing.assert_allclose(frequencies(SamplingConfig(1.0, top_k=99)), np.exp(LOGITS), atol=0.015)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.49, [1]), (0.51, [1, 2]), (0.74, [1, 2]), (0.76, [1, 2, 3]), (1e-6, [1])]
)
def test_top_p_keeps_the_id_that_crosses_p(top_p, kept):
    found = frequencies(SamplingConfig(1.0, top_p=top_p), 2000)
    assert np.flatnonzero(found).tolist() == kept


def test_top_p_counts_after_top_k():
    # Of the two largest, 0.5 and 0.25, the first alone has two thirds of the mass.
    assert np.flatnonzero(frequencies(SamplingConfig(1.0, top_k=2, top_p=0.6), 2000)).tolist() == [1]


def test_a_row_draws_the_same_whatever_the_rows_beside_it():
    logits = jax.random.normal(jax.random.key(1), (4, 50))
    keys = sampling_keys(3, 0, range(4))
    together = sample_tokens(logits, keys, 5, SamplingConfig(1.0).params, "all")
    alone = [
        sample_tokens(logits[i : i + 1], keys[i : i + 1], 5, SamplingConfig(1.0).params, "all")[0] for i in range(4)
    ]
    np.testing.assert_array_equal(together, alone)


def test_steps_and_rows_and_seeds_draw_differently():
    logits = jnp.zeros((1, 1000))

    def one(seed, row, step):
        return int(
            sample_tokens(logits, sampling_keys(seed, row, range(1)), step, SamplingConfig(1.0).params, "all")[0]
        )

    assert len({one(*case) for case in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}) == 4


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}])
def test_a_number_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(JanusError, match=next(iter(wrong))):
        SamplingConfig(**wrong)
