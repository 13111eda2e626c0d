import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import Execution
from janus_jax.generation import decode
from janus_jax.generation.decode import guide
from janus_jax.generation.image_tokens import sample_image_tokens, tokens_to_images
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.models.backbone import apply
from janus_jax.models.janus import Janus
from tests import tiny

PROMPTS = ["A red boat", "Two birds and a tree, drawn in ink"]
MODEL = Janus(tiny.CONFIG, Execution(layers="unrolled"))


def prompt_batch(prompts, guided=True, length=None):
    processor = tiny.processor()
    rows = [processor.generation_prompt(prompt) for prompt in prompts]
    if guided:
        rows = [row for prompt in rows for row in (prompt, processor.unconditional_sequence(prompt))]
    return processor.left_pad(rows, length)


GREEDY, WARM = SamplingConfig(), SamplingConfig(1.0)


def draw(prompts=PROMPTS, per_prompt=1, sampling=WARM, scale=5.0, seed=0, model=MODEL, **options):
    length = options.pop("length", None)
    keys = jnp.stack([sampling_keys(seed, prompt, range(per_prompt)) for prompt in range(len(prompts))])
    batch = prompt_batch(prompts, scale != 1, length)
    return np.asarray(
        sample_image_tokens(model, tiny.unrolled_params(), batch, keys, sampling, guidance_scale=scale, **options)
    )


def best_ids_of_the_whole_sequence(prompt, drawn, scale):
    """The likeliest id at every step, from one pass of the scanned model over prompt and drawn ids, with no cache."""
    processor, params = tiny.processor(), tiny.stacked_params()
    model = Janus(tiny.CONFIG, Execution())
    row = processor.generation_prompt(prompt)
    batch = processor.left_pad([row, processor.unconditional_sequence(row)])

    @jax.jit
    def run(params, drawn):
        x = [apply(model.embed, params, batch), apply(model.embed_image_tokens, params, drawn)]
        x = jnp.concatenate(x, axis=1)
        places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        hidden = model.apply(
            {"params": params}, x, places, jnp.ones_like(places), method=lambda model, *args: model.llm(*args)[0]
        )
        logits = apply(model.image_logits, params, hidden[:, len(row) - 1 : -1])
        return jnp.argmax(logits[1] + scale * (logits[0] - logits[1]), axis=-1)

    return run(params, jnp.stack([drawn, drawn]))


def test_guidance_is_u_plus_s_times_c_minus_u():
    logits = jnp.array([[1.0, 2.0], [3.0, 5.0], [7.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(guide(logits, 2, 3.0), [[-3.0, -4.0], [19.0, -2.0]])


def test_the_cached_loop_draws_what_the_whole_sequence_says():
    (drawn,) = draw(PROMPTS[1:], sampling=GREEDY)
    np.testing.assert_array_equal(drawn, best_ids_of_the_whole_sequence(PROMPTS[1], drawn, 5.0))


def test_prompts_of_different_lengths_draw_as_each_alone():
    together = draw(sampling=GREEDY)
    alone = [draw([prompt], sampling=GREEDY)[0] for prompt in PROMPTS]
    np.testing.assert_array_equal(together, alone)


def test_padding_a_prompt_changes_nothing():
    np.testing.assert_array_equal(draw(sampling=GREEDY, length=64), draw(sampling=GREEDY))


def test_a_prompt_is_run_once_however_many_images_it_draws(monkeypatch):
    starts = []
    prefill = decode.prefill
    monkeypatch.setattr(decode, "prefill", lambda *args, **kw: starts.append(args[2].shape) or prefill(*args, **kw))
    drawn = draw(PROMPTS[:1], per_prompt=4)
    assert [rows for rows, _ in starts] == [2]
    assert len({tuple(ids) for ids in drawn.tolist()}) == 4


def test_images_of_one_prompt_are_those_drawn_with_their_keys_alone():
    together = draw(PROMPTS[:1], per_prompt=3)
    np.testing.assert_array_equal(together[:1], draw(PROMPTS[:1], per_prompt=1))


def test_without_guidance_the_unconditional_rows_are_left_out():
    unguided = draw(PROMPTS[:1], sampling=GREEDY, scale=1.0)
    nearly = draw(PROMPTS[:1], sampling=GREEDY, scale=1.0 + 1e-6)
    np.testing.assert_array_equal(unguided, nearly)


def test_guidance_makes_a_difference():
    assert (draw(sampling=GREEDY, scale=5.0) != draw(sampling=GREEDY, scale=1.0)).any()


def test_the_cache_grows_without_a_trace(monkeypatch):
    expected = draw(sampling=GREEDY)
    monkeypatch.setattr(decode, "CACHE_STEP", 16)
    np.testing.assert_array_equal(draw(sampling=GREEDY), expected)


def test_reports_add_up_and_change_nothing():
    reports = []
    np.testing.assert_array_equal(draw(report=reports.append, report_every=10), draw())
    assert sum(reports) == tiny.CONFIG.gen_encoder.num_tokens
    assert max(reports) <= 10


def test_another_prompt_and_other_numbers_compile_nothing(monkeypatch):
    draw(["A red boat on a lake"], length=64)
    sizes = decode.prefill._cache_size(), decode.decode._cache_size()
    draw(["Ink"], sampling=SamplingConfig(0.7), scale=3.0, seed=5, length=64)
    assert (decode.prefill._cache_size(), decode.decode._cache_size()) == sizes


@pytest.mark.parametrize("sampling", [SamplingConfig(1.0, top_k=1), SamplingConfig(1.0, top_p=1e-6)])
def test_filters_reach_the_loop(sampling):
    np.testing.assert_array_equal(draw(sampling=sampling), draw(sampling=GREEDY))


def test_an_image_of_one_id_can_be_drawn():
    side = tiny.CONFIG.gen_encoder.downsampling
    gen_encoder = dataclasses.replace(tiny.CONFIG.gen_encoder, image_size=side)
    model = Janus(dataclasses.replace(tiny.CONFIG, gen_encoder=gen_encoder), Execution(layers="unrolled"))
    assert draw(sampling=GREEDY, model=model).tolist() == draw(sampling=GREEDY)[:, :1].tolist()


def test_rendering_is_the_tokenizers_decoder_in_any_batch():
    ids = jnp.asarray(draw())
    pictures = np.concatenate([tokens_to_images(MODEL, tiny.unrolled_params(), ids[i : i + 1]) for i in range(2)])
    pixels = np.asarray(jax.jit(lambda params: apply(MODEL.detokenize, params, ids))(tiny.unrolled_params()))
    expected = np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8)
    assert np.abs(pictures.astype(int) - expected).max() <= 1
    assert pictures.shape == (2, 32, 32, 3)
