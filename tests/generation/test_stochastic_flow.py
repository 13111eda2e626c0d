"""Stochastic sampling of a rectified flow, and the probabilities of its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from janus_jax.config import Execution
from janus_jax.generation.rectified_flow import FlowSampler, sample_latents
from janus_jax.generation.sampling import sampling_keys
from janus_jax.generation.stochastic_flow import StepDistribution, sample_path, step_distribution
from janus_jax.models.janusflow import JanusFlow
from tests import tiny

MODEL = JanusFlow(tiny.FLOW, Execution(layers="unrolled"))
STEPS = 3


def path(noise_level, prompts=("A red boat", "Two birds"), per_prompt=1):
    processor = tiny.processor(tiny.FLOW)
    keys = jnp.stack([sampling_keys(0, prompt, range(per_prompt)) for prompt in range(len(prompts))])
    batch = processor.left_pad([processor.generation_prompt(prompt) for prompt in prompts], 48)
    params, options = tiny.unrolled_params(tiny.FLOW), {"guidance_scale": 2.0, "noise_level": noise_level}
    return sample_path(MODEL, params, batch, keys, steps=STEPS, **options), (params, batch, keys)


@pytest.mark.slow
def test_without_noise_the_path_is_that_of_the_ode():
    found, arguments = path(0.0)
    np.testing.assert_allclose(found[:, -1], sample_latents(MODEL, *arguments, FlowSampler(2.0, STEPS)), atol=1e-5)


@pytest.mark.slow
def test_noise_depends_on_image_and_step():
    found, (_, _, keys) = path(0.7)
    quiet, _ = path(0.0)
    np.testing.assert_array_equal(found[:, 0], quiet[:, 0])
    first, second = (found[:, 1] - quiet[:, 1]).reshape(2, -1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
    # Alone, the second image has another seed but the same key.
    params, processor = tiny.unrolled_params(tiny.FLOW), tiny.processor(tiny.FLOW)
    alone = processor.left_pad([processor.generation_prompt("Two birds")], 48)
    options = {"steps": STEPS, "guidance_scale": 2.0, "noise_level": 0.7}
    single = sample_path(MODEL, params, alone, keys[1:], **options)
    np.testing.assert_allclose(single[0], found[1], atol=2e-4)


@jax.jit
def normal_images(start, noise, mean, spread, noise_level):
    """Samples images that are normal with a mean and a standard deviation, for which the velocity is known.

    Returns the latents after each step.
    """
    steps = len(noise)

    def step(latents, inputs):
        number, noise = inputs
        time = number / steps
        slope = (time * spread**2 - (1 - time)) / ((time * spread) ** 2 + (1 - time) ** 2)
        velocities = mean + slope * (latents - time * mean)
        found = step_distribution(latents, velocities, time, 1 / steps, noise_level)
        following = found.mean + found.std * noise
        return following, following

    return lax.scan(step, start, (jnp.arange(steps), noise))[1]


@pytest.mark.parametrize("noise_level", [0.0, 0.3, 0.7, 1.0])
def test_samples_have_the_distribution_of_the_ode(noise_level):
    mean, spread, steps = 1.5, 0.4, 200
    start, *noise = np.random.default_rng(0).standard_normal((steps + 1, 10_000, 1, 1, 1), np.float32)
    latents = np.asarray(normal_images(start, np.stack(noise), mean, spread, noise_level))
    times = np.arange(1, steps + 1) / steps
    expected = np.sqrt((times * spread) ** 2 + (1 - times) ** 2)
    # The first steps are the least accurate.
    means, stds = latents.mean(axis=(1, 2, 3, 4)), latents.std(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(means[50:], times[50:] * mean, atol=0.03)
    np.testing.assert_allclose(stds[50:], expected[50:], rtol=0.03)


def test_steps_have_the_standard_deviation_of_the_noise_level():
    zeros = jnp.zeros((1, 1, 1, 1))
    found = [step_distribution(zeros, zeros, jnp.asarray(time), 0.1, 0.7).std for time in (0.0, 0.1, 0.5, 0.9)]
    # 0.7 sqrt(0.1 (1 - t) / t); the first step divides by 0.1.
    expected = 0.7 * np.sqrt([1, 0.9, 0.1, 0.1 / 9])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_log_probability_is_that_of_a_normal_distribution():
    rng = np.random.default_rng(0)
    mean, value = rng.standard_normal((2, 3, 2, 2, 5))
    found = StepDistribution(jnp.asarray(mean), jnp.asarray(0.3)).log_prob(jnp.asarray(value))
    density = np.exp(-(((value - mean) / 0.3) ** 2) / 2) / (0.3 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(found, np.log(density).mean(axis=(1, 2, 3)), rtol=1e-5)
