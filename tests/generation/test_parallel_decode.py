import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2_contingency

from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.generation import decode, parallel_decode
from janus_jax.generation.image_tokens import TokenSampler, image_token_decoder, sample_image_tokens
from janus_jax.generation.parallel_decode import auto_window
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.models.janus import Janus
from janus_jax.models.target_platform import target_platform
from janus_jax.sharding import make_mesh, use_mesh
from tests import tiny
from tests.generation.test_image_tokens import MODEL, PROMPTS, prompt_batch

NUM_TOKENS = tiny.CONFIG.num_gen_tokens


def keys_of(seed, num_prompts, per_prompt):
    return jnp.stack([sampling_keys(seed, prompt, range(per_prompt)) for prompt in range(num_prompts)])


def sample(window, *, prompts=PROMPTS, per_prompt=1, temperature=1.0, top_k=0, scale=5.0, seed=0, **options):
    return np.asarray(
        sample_image_tokens(
            MODEL,
            tiny.unrolled_params(),
            prompt_batch(prompts, scale != 1, 64),
            keys_of(seed, len(prompts), per_prompt),
            SamplingConfig(temperature, top_k),
            guidance_scale=scale,
            parallel_window=window,
            **options,
        )
    )


@pytest.mark.slow
def test_tokens_equal_those_of_sequential_decoding(monkeypatch):
    # The cache grows while sequences of the batch have different lengths, and some have all tokens.
    monkeypatch.setattr(decode, "CACHE_STEP", 32)
    monkeypatch.setattr(parallel_decode, "CACHE_STEP", 32)
    for seed, scale in enumerate([5.0, 1.5, 3.0, 0.0]):
        reports = []
        tokens = sample(7, seed=seed, scale=scale, report=reports.append, report_every=10)
        np.testing.assert_array_equal(tokens, sample(0, seed=seed, scale=scale))
        assert sum(reports) == NUM_TOKENS


@pytest.mark.nightly
@pytest.mark.parametrize("window", [2, 5, 16, 100])
@pytest.mark.parametrize(
    "settings",
    [
        {"prompts": PROMPTS[:1]},
        {"prompts": PROMPTS[:1], "scale": 1.0},
        {"per_prompt": 3},
        {"temperature": 0.0},
        {"top_k": 5},
    ],
    ids=["one image", "without guidance", "several images of a prompt", "greedy", "top-k"],
)
def test_every_window_and_batch_gives_the_sequential_tokens(window, settings):
    for seed in range(5):
        np.testing.assert_array_equal(sample(window, seed=seed, **settings), sample(0, seed=seed, **settings))


@pytest.mark.slow
def test_sharded_tokens_equal_those_of_a_single_device():
    # Four images on four data shards, each of which accepts another number of tokens per pass.
    sharded = tiny.pretrained(make_mesh(4, 1, 2))
    images = sharded.generate(PROMPTS, images_per_prompt=2, seed=3, parallel_window=4)
    expected = tiny.pretrained().generate(PROMPTS, images_per_prompt=2, seed=3)
    np.testing.assert_allclose(np.asarray(images, int), np.asarray(expected, int), atol=1)


@pytest.mark.slow
def test_passes_are_fewer_than_tokens_where_the_next_token_is_certain():
    # Nearly flat logits: the noise alone decides, so drafts that share it are always right.
    batch = prompt_batch(PROMPTS, True, 64)
    decoder = image_token_decoder(
        MODEL,
        tiny.unrolled_params(),
        batch,
        keys_of(0, 2, 1),
        SamplingConfig(1e4),
        guidance_scale=5.0,
        parallel_window=8,
    )
    decoder.advance(NUM_TOKENS - 1)
    # The first pass over a position makes its draft, the second one accepts it.
    assert NUM_TOKENS / 8 <= decoder.num_passes <= 2 * NUM_TOKENS / 8 + 1


def test_automatic_window_fits_device_and_batch():
    with target_platform("gpu"):
        windows = [auto_window(num_sequences) for num_sequences in (2, 8, 64, 256)]
        with use_mesh(make_mesh(4, 1, 2)):
            assert auto_window(8) == windows[0]
    assert windows == sorted(windows, reverse=True)
    assert windows[0] > 8
    assert windows[-1] == 0


@pytest.mark.parametrize("window", [-1, 1000, 2.5, "many"])
def test_invalid_window_is_reported(window):
    with pytest.raises(JanusError, match=r"^parallel_window is .*; it must be auto or"):
        TokenSampler(parallel_window=window)


@pytest.mark.nightly
def test_bfloat16_changes_few_tokens_and_not_the_distribution_of_images(monkeypatch):
    # Images of 4 tokens from 4 codes: few enough for a count of each of the 256 images.
    num_images, num_codes, num_tokens = 4096, 4, 4
    config = dataclasses.replace(
        tiny.CONFIG,
        gen_encoder=dataclasses.replace(tiny.CONFIG.gen_encoder, image_size=8, codebook_size=num_codes),
        llm=dataclasses.replace(tiny.CONFIG.llm, depth=2),
    )
    params, batch = tiny.unrolled_params(config), prompt_batch([""])

    def images(name, seed, window):
        # A program is compiled for each name.
        model = Janus(dataclasses.replace(config, name=name), Execution("bfloat16", layers="unrolled"))
        keys, sampling = keys_of(seed, 1, num_images), SamplingConfig(1.0)
        tokens = sample_image_tokens(model, params, batch, keys, sampling, guidance_scale=3.0, parallel_window=window)
        return np.asarray(tokens)

    def p_value(*samples):
        """Returns the p-value of a chi-square test of homogeneity. Rare images count as one kind."""
        digits = num_codes ** np.arange(num_tokens)
        counts = np.stack([np.bincount(tokens @ digits, minlength=num_codes**num_tokens) for tokens in samples])
        rare = counts.sum(axis=0) < 10
        return chi2_contingency(np.c_[counts[:, ~rare], counts[:, rare].sum(axis=1)]).pvalue

    sequential, same_keys = images("tiny", 0, 0), images("tiny", 0, 3)
    assert (sequential != same_keys).any(axis=1).mean() < 0.03
    # Other keys, so that the samples are independent.
    assert p_value(sequential, images("tiny", 1, 3)) > 1e-3
    # The test detects a sampler that accepts all drafts.
    monkeypatch.setattr(parallel_decode, "_count_accepted", lambda samples, _: jnp.full(len(samples), samples.shape[1]))
    assert p_value(sequential, images("unverified", 1, 3)) < 1e-9
