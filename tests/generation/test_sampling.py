import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.generation.sampling import INVALID_TOKEN, SamplingConfig, check_sampled, sample_tokens, sampling_keys

LOGITS = jnp.log(jnp.array([0.05, 0.5, 0.25, 0.15, 0.05]))


def frequencies(sampling, count=20000):
    logits = jnp.broadcast_to(LOGITS, (count, LOGITS.size))
    tokens = sample_tokens(logits, sampling_keys(0, 0, range(count)), 0, sampling.params, sampling.strategy)
    return np.bincount(tokens, minlength=LOGITS.size) / count


@pytest.mark.parametrize("sampling", [SamplingConfig(0.0), SamplingConfig(1.0), SamplingConfig(1.0, top_k=2)])
def test_nan_logits_give_the_invalid_token(sampling):
    logits = jnp.stack([LOGITS, LOGITS.at[2].set(jnp.nan)])
    tokens = np.asarray(sample_tokens(logits, sampling_keys(0, 0, range(2)), 0, sampling.params, sampling.strategy))
    assert tokens[0] != INVALID_TOKEN
    assert tokens[1] == INVALID_TOKEN
    check_sampled(tokens[:1])
    with pytest.raises(JanusError, match="logits are NaN"):
        check_sampled(tokens)


@pytest.mark.parametrize(
    ("sampling", "weights"),
    [
        (SamplingConfig(0.0), np.array([0, 1, 0, 0, 0])),
        (SamplingConfig(1.0), np.exp(LOGITS)),
        (SamplingConfig(0.5), np.exp(LOGITS / 0.5)),
        (SamplingConfig(1.0, top_k=2), np.array([0, 2, 1, 0, 0])),
        (SamplingConfig(1.0, top_k=99), np.exp(LOGITS)),
    ],
)
def test_frequencies_of_sampled_tokens_equal_their_probabilities(sampling, weights):
    np.testing.assert_allclose(frequencies(sampling), weights / weights.sum(), atol=0.015)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.49, [1]), (0.51, [1, 2]), (0.74, [1, 2]), (0.76, [1, 2, 3]), (1e-6, [1])]
)
def test_top_p_keeps_the_token_that_crosses_p(top_p, kept):
    found = frequencies(SamplingConfig(1.0, top_p=top_p), 2000)
    assert np.flatnonzero(found).tolist() == kept


def test_top_p_applies_after_top_k():
    # The first of the two largest (0.5 and 0.25) has two thirds of their probability.
    assert np.flatnonzero(frequencies(SamplingConfig(1.0, top_k=2, top_p=0.6), 2000)).tolist() == [1]


def test_sample_does_not_depend_on_the_rest_of_the_batch():
    logits = jax.random.normal(jax.random.key(1), (4, 50))
    keys = sampling_keys(3, 0, range(4))
    together = sample_tokens(logits, keys, 5, SamplingConfig(1.0).params, "all")
    alone = [
        sample_tokens(logits[i : i + 1], keys[i : i + 1], 5, SamplingConfig(1.0).params, "all")[0] for i in range(4)
    ]
    np.testing.assert_array_equal(together, alone)


def test_steps_prompts_and_seeds_give_different_samples():
    logits = jnp.zeros((1, 1000))

    def one(seed, prompt, step):
        return int(
            sample_tokens(logits, sampling_keys(seed, prompt, range(1)), step, SamplingConfig(1.0).params, "all")[0]
        )

    assert len({one(*case) for case in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}) == 4


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}])
def test_number_out_of_range_is_reported(wrong):
    with pytest.raises(JanusError, match=next(iter(wrong))):
        SamplingConfig(**wrong)
