import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.batch import NO_IMAGE, PADDING_SEGMENT
from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.generation import rectified_flow as flow
from janus_jax.generation.rectified_flow import (
    SOLVERS,
    FlowSampler,
    euler,
    heun,
    midpoint,
    sample_latents,
    sample_noise,
)
from janus_jax.generation.sampling import sampling_keys
from janus_jax.models.backbone import apply
from janus_jax.models.janusflow import JanusFlow
from tests import tiny

PROMPTS = ["A red boat", "Two birds and a tree, drawn in ink"]
MODEL = JanusFlow(tiny.FLOW, Execution(layers="unrolled"))
THREE = FlowSampler(steps=3)


def draw(prompts=PROMPTS, per_prompt=1, drawing=THREE, seed=0, length=None, **options):
    processor = tiny.processor(tiny.FLOW)
    keys = jnp.stack([sampling_keys(seed, prompt, range(per_prompt)) for prompt in range(len(prompts))])
    batch = processor.left_pad([processor.generation_prompt(prompt) for prompt in prompts], length)
    return np.asarray(sample_latents(MODEL, tiny.unrolled_params(tiny.FLOW), batch, keys, drawing, **options))


def assert_alike(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())


def whole_rows(prompt):
    """A row of prompt, time and latents, and its unconditional twin, all but whose first place is masked."""
    processor = tiny.processor(tiny.FLOW)
    length = len(processor.generation_prompt(prompt))
    row = processor.generation_sequence(prompt, tiny.picture(0))
    batch = processor.left_pad([row, row])
    assert (batch.gen_token_index[:, length:] != NO_IMAGE).all()
    batch.segment_ids[1, 1 : length - 1] = PADDING_SEGMENT
    return batch


def drawn_from_whole_rows(prompt, noise, drawing):
    """The flow with everything computed anew at every step, by the scanned model on whole rows."""
    batch, model, params = whole_rows(prompt), JanusFlow(tiny.FLOW, Execution()), tiny.stacked_params(tiny.FLOW)

    @jax.jit
    def field(latents, time):
        at_time = batch._replace(gen_latents=jnp.stack([latents] * 2), gen_times=jnp.full((2, 1), time))
        c, u = apply(model.velocities, params, at_time, apply(model.states, params, at_time))
        return u + drawing.guidance_scale * (c - u)

    latents = noise
    for step in range(drawing.steps):
        latents = SOLVERS[drawing.sampler](field, latents, step / drawing.steps, 1 / drawing.steps)
    return latents


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_with_the_prompt_computed_once_images_are_those_of_computing_everything_anew(sampler):
    drawing = FlowSampler(steps=3, sampler=sampler)
    keys = sampling_keys(0, 0, range(1))
    expected = drawn_from_whole_rows(PROMPTS[1], sample_noise(MODEL, keys), drawing)
    assert_alike(draw(PROMPTS[1:], drawing=drawing), expected)


@pytest.mark.parametrize("solver", SOLVERS.values())
def test_every_solver_is_exact_where_the_velocity_is_constant(solver):
    assert solver(lambda z, t: jnp.full_like(z, 3.0), jnp.ones(2), 0.5, 0.25) == pytest.approx(1.75)


@pytest.mark.parametrize("solver", [midpoint, heun])
def test_solvers_of_second_order_are_exact_where_the_velocity_is_linear_in_time(solver):
    # From z(0.5) = 1, with dz/dt = 1 + 4 t.
    assert solver(lambda z, t: 1 + 4 * t + 0 * z, jnp.ones(2), 0.5, 0.25) == pytest.approx(
        1 + 0.25 + 2 * (0.5625 - 0.25)
    )


@pytest.mark.parametrize(("solver", "gain"), [(euler, 1.5), (midpoint, 1.625), (heun, 1.625)])
def test_solvers_follow_an_exponential_to_their_order(solver, gain):
    assert solver(lambda z, t: z, jnp.ones(2), 0.0, 0.5) == pytest.approx(gain)


def test_prompts_of_different_lengths_draw_as_each_alone():
    together = draw()
    for index, prompt in enumerate(PROMPTS):
        processor = tiny.processor(tiny.FLOW)
        batch = processor.left_pad([processor.generation_prompt(prompt)])
        keys = sampling_keys(0, index, range(1))[None]
        alone = sample_latents(MODEL, tiny.unrolled_params(tiny.FLOW), batch, keys, THREE)
        assert_alike(together[index], alone[0])


def test_padding_a_prompt_changes_nothing():
    assert_alike(draw(length=64), draw())


def test_images_of_one_prompt_are_those_drawn_with_their_keys_alone():
    together = draw(PROMPTS[:1], per_prompt=3)
    assert_alike(together[:1], draw(PROMPTS[:1]))
    assert len({image.tobytes() for image in together}) == 3


def test_a_prompt_is_run_once_however_many_images_and_steps(monkeypatch):
    runs = []
    monkeypatch.setattr(flow, "prefill", lambda *args, run=flow.prefill: runs.append(args[2].shape) or run(*args))
    draw(PROMPTS[:1], per_prompt=2, report=lambda _: None, report_every=1)
    assert [rows for rows, _ in runs] == [1]


def test_without_guidance_the_unconditional_rows_are_left_out():
    assert_alike(draw(drawing=FlowSampler(1.0, 3)), draw(drawing=FlowSampler(1.0 + 1e-6, 3)))


def test_guidance_and_the_prompt_make_a_difference():
    guided, bare = draw(PROMPTS[:1]), draw(PROMPTS[:1], drawing=FlowSampler(1.0, 3))
    assert np.abs(guided - bare).max() > 1e-3 * np.abs(bare).max()
    other = draw(PROMPTS[1:], drawing=FlowSampler(1.0, 3))
    assert np.abs(other - bare).max() > 1e-3 * np.abs(bare).max()


def test_with_no_weight_on_the_condition_the_prompt_makes_none():
    # Positions still count: prompts of one length.
    nothing = FlowSampler(0.0, 3)
    assert_alike(draw(["A red boat"], drawing=nothing), draw(["A boat red"], drawing=nothing))


def test_reports_add_up_and_change_nothing():
    reports = []
    assert_alike(
        draw(drawing=FlowSampler(steps=5), report=reports.append, report_every=2), draw(drawing=FlowSampler(steps=5))
    )
    assert reports == [2, 2, 1]


def test_other_numbers_compile_nothing():
    draw(PROMPTS[:1], length=64)
    sizes = flow.prefill._cache_size(), flow.integrate._cache_size()
    draw(["Ink"], drawing=FlowSampler(3.5, 2), seed=5, length=64)
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
def test_a_setting_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(JanusError, match=next(iter(wrong))):
        FlowSampler(**wrong)


def test_latents_that_are_no_numbers_are_told():
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, tiny.unrolled_params(tiny.FLOW))
    processor = tiny.processor(tiny.FLOW)
    prompts = processor.left_pad([processor.generation_prompt("Ink")])
    with pytest.raises(JanusError, match="damaged"):
        THREE.sample(MODEL, params, prompts, sampling_keys(0, 0, range(1))[None])


def test_pictures_are_the_vaes_in_any_batch():
    latents, params = jnp.asarray(draw()), tiny.unrolled_params(tiny.FLOW)
    pictures = np.concatenate([flow.latents_to_images(MODEL, params, latents[i : i + 1]) for i in range(2)])
    pixels = np.asarray(jax.jit(lambda params: apply(MODEL.decode_latents, params, latents))(params))
    expected = np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8)
    assert np.abs(pictures.astype(int) - expected).max() <= 1
    assert pictures.shape == (2, 32, 32, 3)
