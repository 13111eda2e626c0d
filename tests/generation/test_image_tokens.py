import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import Execution
from janus_jax.generation import decode
from janus_jax.generation.image_tokens import sample_image_tokens, tokens_to_images
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.models.backbone import apply
from janus_jax.models.janus import Janus
from tests import tiny

PROMPTS = ["A red boat", "Two birds and a tree, tokens in ink"]
MODEL = Janus(tiny.CONFIG, Execution(layers="unrolled"))


def prompt_batch(prompts, guided=True, length=None):
    processor = tiny.processor()
    sequences = [processor.generation_prompt(prompt) for prompt in prompts]
    if guided:
        sequences = [
            sequence for prompt in sequences for sequence in (prompt, processor.unconditional_sequence(prompt))
        ]
    return processor.left_pad(sequences, length)


GREEDY, WARM = SamplingConfig(), SamplingConfig(1.0)


def sample(prompts=PROMPTS, per_prompt=1, sampling=WARM, scale=5.0, seed=0, model=MODEL, **options):
    length = options.pop("length", None)
    keys = jnp.stack([sampling_keys(seed, prompt, range(per_prompt)) for prompt in range(len(prompts))])
    batch = prompt_batch(prompts, scale != 1, length)
    return np.asarray(
        sample_image_tokens(model, tiny.unrolled_params(), batch, keys, sampling, guidance_scale=scale, **options)
    )


def greedy_tokens_without_cache(prompt, tokens, scale):
    """Returns the most likely token at every step, from one pass of the scanned model without a cache."""
    processor, params = tiny.processor(), tiny.stacked_params()
    model = Janus(tiny.CONFIG, Execution())
    sequence = processor.generation_prompt(prompt)
    batch = processor.left_pad([sequence, processor.unconditional_sequence(sequence)])

    @jax.jit
    def run(params, tokens):
        x = [apply(model.embed, params, batch), apply(model.embed_image_tokens, params, tokens)]
        x = jnp.concatenate(x, axis=1)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        hidden = model.apply(
            {"params": params}, x, positions, jnp.ones_like(positions), method=lambda model, *args: model.llm(*args)[0]
        )
        logits = apply(model.image_logits, params, hidden[:, len(sequence) - 1 : -1])
        return jnp.argmax(logits[1] + scale * (logits[0] - logits[1]), axis=-1)

    return run(params, jnp.stack([tokens, tokens]))


def test_decode_loop_equals_a_pass_without_cache():
    (tokens,) = sample(PROMPTS[1:], sampling=GREEDY)
    np.testing.assert_array_equal(tokens, greedy_tokens_without_cache(PROMPTS[1], tokens, 5.0))


@pytest.mark.slow
def test_batch_of_different_lengths_equals_single_prompts():
    together = sample(sampling=GREEDY)
    single = [sample([prompt], sampling=GREEDY)[0] for prompt in PROMPTS]
    np.testing.assert_array_equal(together, single)


def test_prompt_runs_once_for_all_its_images(monkeypatch):
    starts = []
    prefill = decode.prefill
    monkeypatch.setattr(decode, "prefill", lambda *args, **kw: starts.append(args[2].shape) or prefill(*args, **kw))
    tokens = sample(PROMPTS[:1], per_prompt=4)
    assert [sequences for sequences, _ in starts] == [2]
    assert len({tuple(tokens) for tokens in tokens.tolist()}) == 4


@pytest.mark.slow
def test_images_of_one_prompt_depend_on_their_keys():
    together = sample(PROMPTS[:1], per_prompt=3)
    np.testing.assert_array_equal(together[:1], sample(PROMPTS[:1], per_prompt=1))


def test_guidance_scale_1_equals_no_guidance():
    unguided = sample(PROMPTS[:1], sampling=GREEDY, scale=1.0)
    nearly = sample(PROMPTS[:1], sampling=GREEDY, scale=1.0 + 1e-6)
    np.testing.assert_array_equal(unguided, nearly)


@pytest.mark.slow
def test_growing_the_cache_does_not_change_tokens(monkeypatch):
    expected = sample(sampling=GREEDY)
    monkeypatch.setattr(decode, "CACHE_STEP", 16)
    np.testing.assert_array_equal(sample(sampling=GREEDY), expected)


def test_reports_add_up_and_do_not_change_tokens():
    reports = []
    np.testing.assert_array_equal(sample(report=reports.append, report_every=10), sample())
    assert sum(reports) == tiny.CONFIG.gen_encoder.num_tokens
    assert max(reports) <= 10


def test_other_prompt_and_settings_compile_nothing(monkeypatch):
    sample(["A red boat on a lake"], length=64)
    sizes = decode.prefill._cache_size(), decode.decode._cache_size()
    sample(["Ink"], sampling=SamplingConfig(0.7), scale=3.0, seed=5, length=64)
    assert (decode.prefill._cache_size(), decode.decode._cache_size()) == sizes


@pytest.mark.parametrize("sampling", [SamplingConfig(1.0, top_k=1), SamplingConfig(1.0, top_p=1e-6)])
def test_filters_apply_in_the_loop(sampling):
    np.testing.assert_array_equal(sample(sampling=sampling), sample(sampling=GREEDY))


def test_image_of_a_single_token():
    side = tiny.CONFIG.gen_encoder.downsampling
    gen_encoder = dataclasses.replace(tiny.CONFIG.gen_encoder, image_size=side)
    model = Janus(dataclasses.replace(tiny.CONFIG, gen_encoder=gen_encoder), Execution(layers="unrolled"))
    assert sample(sampling=GREEDY, model=model).tolist() == sample(sampling=GREEDY)[:, :1].tolist()


@pytest.mark.slow
def test_images_are_those_of_the_tokenizer_in_any_batch():
    tokens = jnp.asarray(sample())
    images = np.concatenate([tokens_to_images(MODEL, tiny.unrolled_params(), tokens[i : i + 1]) for i in range(2)])
    pixels = np.asarray(jax.jit(lambda params: apply(MODEL.detokenize, params, tokens))(tiny.unrolled_params()))
    expected = np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8)
    assert np.abs(images.astype(int) - expected).max() <= 1
    assert images.shape == (2, 32, 32, 3)
