import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.batch import NO_IMAGE, PADDING_SEGMENT
from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.generation import rectified_flow as flow
from janus_jax.generation.rectified_flow import SOLVERS, FlowSampler, sample_latents, sample_noise
from janus_jax.generation.sampling import sampling_keys
from janus_jax.models.backbone import apply
from janus_jax.models.janusflow import JanusFlow
from tests import tiny

PROMPTS = ["A red boat", "Two birds and a tree, latents in ink"]
MODEL = JanusFlow(tiny.FLOW, Execution(layers="unrolled"))
THREE = FlowSampler(steps=3)


def sample(prompts=PROMPTS, per_prompt=1, sampler=THREE, seed=0, length=None, **options):
    processor = tiny.processor(tiny.FLOW)
    keys = jnp.stack([sampling_keys(seed, prompt, range(per_prompt)) for prompt in range(len(prompts))])
    batch = processor.left_pad([processor.generation_prompt(prompt) for prompt in prompts], length)
    return np.asarray(sample_latents(MODEL, tiny.unrolled_params(tiny.FLOW), batch, keys, sampler, **options))


def assert_alike(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())


def whole_sequences(prompt):
    """Returns a batch of prompt, time and latents, and of the unconditional sequence (only the first token)."""
    processor = tiny.processor(tiny.FLOW)
    length = len(processor.generation_prompt(prompt))
    sequence = processor.generation_sequence(prompt, tiny.picture(0))
    batch = processor.left_pad([sequence, sequence])
    assert (batch.gen_token_index[:, length:] != NO_IMAGE).all()
    batch.segment_ids[1, 1 : length - 1] = PADDING_SEGMENT
    return batch


def sample_without_cache(prompt, noise, sampler):
    """Returns latents computed by the scanned model on whole sequences, without a cache."""
    batch, model, params = whole_sequences(prompt), JanusFlow(tiny.FLOW, Execution()), tiny.stacked_params(tiny.FLOW)

    @jax.jit
    def field(latents, time):
        at_time = batch._replace(gen_latents=jnp.stack([latents] * 2), gen_times=jnp.full((2, 1), time))
        c, u = apply(model.velocities, params, at_time, apply(model.states, params, at_time))
        return u + sampler.guidance_scale * (c - u)

    latents = noise
    for step in range(sampler.steps):
        latents = SOLVERS[sampler.sampler](field, latents, step / sampler.steps, 1 / sampler.steps)
    return latents


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["euler", pytest.param("heun", marks=pytest.mark.nightly)])
def test_cached_prompt_equals_computation_without_cache(sampler):
    sampler = FlowSampler(steps=3, sampler=sampler)
    keys = sampling_keys(0, 0, range(1))
    expected = sample_without_cache(PROMPTS[1], sample_noise(MODEL, keys), sampler)
    assert_alike(sample(PROMPTS[1:], sampler=sampler), expected)


@pytest.mark.parametrize(("solver", "expected"), [("euler", 1.75), ("midpoint", 1.96875), ("heun", 1.96875)])
def test_solver_step_of_a_linear_velocity(solver, expected):
    # dz/dt = z + 4 t from z(0.5) = 1. Midpoint: 1 + 0.25 (1.375 + 2.5). Heun: 1 + 0.125 (3 + 4.75).
    assert SOLVERS[solver](lambda z, t: z + 4 * t, jnp.ones(2), 0.5, 0.25) == pytest.approx(expected)


@pytest.mark.slow
def test_batch_of_different_lengths_equals_single_prompts():
    together = sample()
    for index, prompt in enumerate(PROMPTS):
        processor = tiny.processor(tiny.FLOW)
        batch = processor.left_pad([processor.generation_prompt(prompt)])
        keys = sampling_keys(0, index, range(1))[None]
        single = sample_latents(MODEL, tiny.unrolled_params(tiny.FLOW), batch, keys, THREE)
        assert_alike(together[index], single[0])


def test_images_of_one_prompt_depend_on_their_keys():
    together = sample(PROMPTS[:1], per_prompt=3)
    assert_alike(together[:1], sample(PROMPTS[:1]))
    assert len({image.tobytes() for image in together}) == 3


def test_prompt_runs_once_for_all_images_and_steps(monkeypatch):
    runs = []
    monkeypatch.setattr(flow, "prefill", lambda *args, run=flow.prefill: runs.append(args[2].shape) or run(*args))
    sample(PROMPTS[:1], per_prompt=2, report=lambda _: None, report_every=1)
    assert [sequences for sequences, _ in runs] == [1]


def test_guidance_scale_1_equals_no_guidance():
    assert_alike(sample(sampler=FlowSampler(1.0, 3)), sample(sampler=FlowSampler(1.0 + 1e-6, 3)))


def test_guidance_scale_0_ignores_the_prompt():
    # Prompts of equal length, as positions still matter.
    nothing = FlowSampler(0.0, 3)
    assert_alike(sample(["A red boat"], sampler=nothing), sample(["A boat red"], sampler=nothing))


def test_reports_add_up_and_do_not_change_latents():
    reports = []
    assert_alike(
        sample(sampler=FlowSampler(steps=5), report=reports.append, report_every=2),
        sample(sampler=FlowSampler(steps=5)),
    )
    assert reports == [2, 2, 1]


def test_other_settings_compile_nothing():
    sample(PROMPTS[:1], length=64)
    sizes = flow.prefill._cache_size(), flow.integrate._cache_size()
    sample(["Ink"], sampler=FlowSampler(3.5, 2), seed=5, length=64)
    assert (flow.prefill._cache_size(), flow.integrate._cache_size()) == sizes


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": -3},
        {"steps": 1.5},
        {"steps": 10**9},
        {"sampler": "dopri"},
        {"guidance_scale": -1.0},
        {"guidance_scale": float("nan")},
    ],
    ids=str,
)
def test_setting_out_of_range_is_reported(wrong):
    with pytest.raises(JanusError, match=next(iter(wrong))):
        FlowSampler(**wrong)


def test_latents_that_are_not_finite_are_reported():
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, tiny.unrolled_params(tiny.FLOW))
    processor = tiny.processor(tiny.FLOW)
    prompts = processor.left_pad([processor.generation_prompt("Ink")])
    with pytest.raises(JanusError, match="damaged"):
        THREE.sample(MODEL, params, prompts, sampling_keys(0, 0, range(1))[None])


def test_images_are_those_of_the_vae_in_any_batch():
    latents, params = jnp.asarray(sample()), tiny.unrolled_params(tiny.FLOW)
    images = np.concatenate([flow.latents_to_images(MODEL, params, latents[i : i + 1]) for i in range(2)])
    pixels = np.asarray(jax.jit(lambda params: apply(MODEL.decode_latents, params, latents))(params))
    expected = np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8)
    assert np.abs(images.astype(int) - expected).max() <= 1
    assert images.shape == (2, 32, 32, 3)
