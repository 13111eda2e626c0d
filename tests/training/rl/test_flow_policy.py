"""The policy of JanusFlow: log-probabilities and KL divergences of its steps."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.generation.rectified_flow import FlowSampler
from janus_jax.generation.sampling import sampling_keys
from janus_jax.models.janusflow import JanusFlow
from janus_jax.training.rl.config import FlowSteps, PolicyOptimization
from janus_jax.training.rl.flow_policy import FlowPolicy
from janus_jax.training.rl.objective import make_policy
from tests import tiny

MODEL = JanusFlow(tiny.FLOW, Execution())
STEPS = FlowSteps(rollout=3, evaluation=5, trained=2)


def sample(policy):
    """Samples two images for each of two prompts of different lengths."""
    processor, keys = tiny.processor(tiny.FLOW), jnp.stack([sampling_keys(0, prompt, range(2)) for prompt in range(2)])
    sequences = [processor.generation_prompt(prompt) for prompt in ("A red boat", "Two birds and a tree")]
    return policy.sample(MODEL, tiny.stacked_params(tiny.FLOW), processor.left_pad(sequences, 48), keys), keys


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [2.0, pytest.param(1.0, marks=pytest.mark.nightly)])
def test_log_probabilities_are_those_of_the_sampled_noise(guidance_scale):
    """Sampling reads the prompt from a cache, and scoring computes whole sequences."""
    policy = FlowPolicy(guidance_scale, STEPS)
    samples, keys = sample(policy)
    trajectories = samples.trajectories
    assert trajectories.latents.shape[:2] == (4, 3)
    assert samples.outputs.shape == trajectories.latents[:, 0].shape
    scores = jax.jit(policy.score, static_argnums=(0, 3))(MODEL, tiny.stacked_params(tiny.FLOW), trajectories, 1)
    shape = tiny.FLOW.latent_shape
    for image, key in enumerate(keys.reshape(-1)):
        np.testing.assert_array_equal(trajectories.latents[image, 0], jax.random.normal(key, shape))
        for number in range(2):
            noise = jax.random.normal(jax.random.fold_in(key, number), shape)
            # The standard deviations of t = 0 and t = 1/3 with steps of 1/3.
            std = 0.7 * math.sqrt(1 - number / 3)
            expected = -float(jnp.square(noise).mean()) / 2 - math.log(std) - math.log(2 * math.pi) / 2
            assert float(scores.log_probs[image, number]) == pytest.approx(expected, abs=2e-4)
            entropy = math.log(std) + math.log(2 * math.pi * math.e) / 2
            assert float(scores.entropy[image, number]) == pytest.approx(entropy, abs=1e-5)


def test_kl_divergence_is_that_of_two_normal_distributions():
    policy, rng = FlowPolicy(2.0, STEPS), np.random.default_rng(0)
    means, reference = rng.standard_normal((2, 3, 2, 4, 4, 2), np.float32)
    found = np.asarray(policy.kl(jnp.asarray(means), jnp.asarray(reference)))
    for number in range(2):
        std = 0.7 * math.sqrt(1 - number / 3)
        # The mean of log p(z) - log q(z) over samples z of p.
        z = means[:, number] + std * rng.standard_normal((4000, 3, 4, 4, 2))
        logs = (np.square((z - reference[:, number]) / std) - np.square((z - means[:, number]) / std)) / 2
        np.testing.assert_allclose(found[:, number], logs.mean(axis=(0, 2, 3, 4)), rtol=0.03)


def test_held_out_images_are_those_of_the_ode_with_more_steps():
    config = tiny.FLOW
    policy = make_policy(config, PolicyOptimization(guidance_scale=3.0, flow=STEPS))
    assert policy.sampler == FlowSampler(3.0, 5)
    with pytest.raises(JanusError, match="has no VAE"):
        make_policy(replace(config, vae=None), PolicyOptimization())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_level": 0.0}, "noise_level is 0.0; it must be above 0"),
        ({"trained": 11}, "trained is 11; it must be at most rollout, 10"),
        ({"rollout": 0}, "rollout is 0"),
    ],
)
def test_unusable_steps_are_refused(settings, message):
    with pytest.raises(JanusError, match=message):
        FlowSteps(**settings)
