import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import Execution
from janus_jax.generation import decode, text
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.generation.text import DEFAULT_NEW_TOKENS, answer_limits, generate_text
from janus_jax.models.backbone import apply
from janus_jax.models.janus import Janus
from tests import tiny

MODEL = Janus(tiny.CONFIG, Execution(layers="unrolled"))
NO_STOP = (-1,)


def ask(content, *images):
    placeholders = "<image_placeholder>\n" * len(images)
    return tiny.processor().understanding_sequence(
        [{"role": "user", "content": placeholders + content, "images": list(images)}]
    )


PROMPTS = [
    ("What is in the picture?", tiny.picture(0)),
    ("Hello",),
    ("Compare these two", tiny.picture(1), tiny.picture(2, (17, 50))),
]


GREEDY = SamplingConfig()


def generate(prompts, count=20, stop_tokens=NO_STOP, sampling=GREEDY, **options):
    prompts = [ask(*prompt) for prompt in prompts]
    keys = jnp.concatenate([sampling_keys(0, prompt, range(1)) for prompt in range(len(prompts))])
    batch = tiny.processor().left_pad(prompts, options.pop("length", None))
    steps = generate_text(
        MODEL, tiny.unrolled_params(), batch, keys, sampling, stop_tokens=stop_tokens, max_new_tokens=count, **options
    )
    return np.concatenate(list(steps), axis=1)


def greedy_tokens_without_cache(prompt, tokens):
    """Returns the most likely token at every step, from one pass of the scanned model without a cache."""
    params, model = tiny.stacked_params(), Janus(tiny.CONFIG, Execution())
    batch = tiny.processor().left_pad([ask(*prompt)])
    length = batch.shape[1]

    @jax.jit
    def run(params, tokens):
        x = jnp.concatenate([apply(model.embed, params, batch), apply(model.embed_text, params, tokens)], axis=1)
        positions = jnp.arange(x.shape[1])[None]
        hidden = model.apply(
            {"params": params}, x, positions, jnp.ones_like(positions), method=lambda model, *args: model.llm(*args)[0]
        )
        return jnp.argmax(apply(model.text_logits, params, hidden[0, length - 1 : -1]), axis=-1)

    return run(params, jnp.asarray(tokens)[None])


@pytest.mark.parametrize("prompt", PROMPTS, ids=["one image", "no image", "two images"])
def test_decode_loop_equals_a_pass_without_cache(prompt):
    (tokens,) = generate([prompt])
    np.testing.assert_array_equal(tokens, greedy_tokens_without_cache(prompt, tokens))


def test_batch_of_different_lengths_equals_single_prompts():
    together = generate(PROMPTS)
    np.testing.assert_array_equal(together, np.concatenate([generate([prompt]) for prompt in PROMPTS]))


@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_chunk_size_does_not_change_tokens(chunk):
    np.testing.assert_array_equal(generate(PROMPTS, chunk=chunk), generate(PROMPTS))


@pytest.mark.slow
def test_growing_the_cache_does_not_change_tokens(monkeypatch):
    expected = generate(PROMPTS)
    monkeypatch.setattr(decode, "CACHE_STEP", 4)
    np.testing.assert_array_equal(generate(PROMPTS), expected)


@pytest.mark.slow
def test_generation_ends_when_all_sequences_have_stopped():
    free = generate(PROMPTS[:2], 20)
    # One token of each sequence.
    stops = (int(free[0, 5]), int(free[1, 9]))
    ends = [next(i for i, token in enumerate(tokens) if token in stops) for tokens in free]
    stopped = generate(PROMPTS[:2], 20, stop_tokens=stops)
    assert stopped.shape[1] == max(ends) + 1
    for prompt, end in enumerate(ends):
        np.testing.assert_array_equal(stopped[prompt, : end + 1], free[prompt, : end + 1])


def test_callback_finishes_sequences():
    def after_ten(tokens):
        return np.array([tokens.shape[1] >= 10] * len(tokens))

    assert generate(PROMPTS, 40, chunk=4, is_finished=after_ten).shape[1] < 16


def test_single_token():
    np.testing.assert_array_equal(generate(PROMPTS, 1), generate(PROMPTS)[:, :1])


@pytest.mark.slow
def test_sampling_depends_on_the_key_of_the_sequence():
    warm = SamplingConfig(1.5)
    first = generate(PROMPTS, sampling=warm)
    np.testing.assert_array_equal(generate(PROMPTS[:1], sampling=warm), first[:1])
    assert (first != generate(PROMPTS)).any()


def test_other_prompt_and_length_compile_nothing():
    generate(PROMPTS[1:2], length=192)
    sizes = decode.prefill._cache_size(), decode.decode._cache_size()
    generate([("Two birds",)], length=192, count=7)
    assert (decode.prefill._cache_size(), decode.decode._cache_size()) == sizes


def test_limits_of_answers():
    assert answer_limits([100], None, 4096) == [DEFAULT_NEW_TOKENS]
    assert answer_limits([100, 4000], 200, 4096) == [200, 96]
    assert answer_limits([100, 4095], None, 4096) == [DEFAULT_NEW_TOKENS, 1]


def test_one_warning_if_a_given_limit_exceeds_the_context(caplog):
    text._warn_of_shorter_answers.cache_clear()
    answer_limits([100], None, 512)
    answer_limits([100], 412, 512)
    assert not caplog.records
    answer_limits([100], 413, 512)
    answer_limits([200], 413, 512)
    (record,) = caplog.records
    assert "max_new_tokens = 413 together exceed the model's context of 512 tokens" in record.getMessage()
