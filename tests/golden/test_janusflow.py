"""Compares JanusFlow with the PyTorch implementation in float32."""

from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.released_flow import LAYOUT, config_from_json
from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import Execution
from janus_jax.generation.rectified_flow import FlowSampler, prefill, sample_latents, velocity
from janus_jax.models.backbone import apply
from janus_jax.models.janusflow import JanusFlow
from janus_jax.processing import open_image, prepare_understanding
from tests.golden.conftest import assert_close, channels_first, golden_set
from tests.golden.pseudo_weights import uniform

SPECIAL = ("bos", "eos", "pad", "begin_of_image", "end_of_image", "image_placeholder")


class GoldenModel:
    """The model of a golden set, and its inputs as batches."""

    def __init__(self, files):
        self.files = files
        self.expected = files.expected
        self.config = config_from_json(JsonObject(files.config, "config.json"), files.shapes)
        self.model = JanusFlow(self.config, Execution(layers="unrolled"))
        self.special = dict(zip(SPECIAL, self.expected["special_ids"].tolist(), strict=True))
        self.guidance_scale, self.steps = float(self.expected["cfg_weight"]), int(self.expected["steps"])

    @cached_property
    def params(self):
        return self.files.params(LAYOUT, self.config, self.model.execution)

    def apply(self, method, *args):
        run = jax.jit(lambda params, *args: apply(method, params, *args))
        return run(self.params, *args)

    def batch(self, ids, images=None):
        und, gen = self.config.und_encoder.image_size, self.config.gen_image_size
        is_image = ids == self.special["image_placeholder"]
        return Batch(
            tokens=ids,
            segment_ids=np.ones_like(ids),
            positions=np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape),
            und_patch_index=np.where(is_image, np.cumsum(is_image, axis=1) - 1, NO_IMAGE).astype(np.int32),
            gen_token_index=np.full_like(ids, NO_IMAGE),
            und_images=np.zeros((len(ids), 0, und, und, 3), np.uint8) if images is None else images[:, None],
            gen_images=np.zeros((len(ids), 0, gen, gen, 3), np.uint8),
        )

    @cached_property
    def noise(self):
        g = self.config.gen_encoder
        shape = (2, g.latent_channels, g.latent_size, g.latent_size)
        return (uniform("flow.z0", shape, self.files.salt) * np.float32(np.sqrt(3))).transpose(0, 2, 3, 1)

    @cached_property
    def prompts(self):
        ids = self.expected["gen_prompt_ids"].astype(np.int32)
        return self.batch(np.stack([ids] * len(self.noise)))

    @cached_property
    def path(self):
        """Latents before each step and at the end, and the guided velocity of each step."""
        prompted = prefill(self.model, self.params, self.prompts, 1, True)
        run = jax.jit(
            lambda params, prompted, z, t: velocity(
                self.model, params, prompted, z, t, guidance_scale=self.guidance_scale
            )
        )
        latents, velocities = [jnp.asarray(self.noise)], []
        for step in range(self.steps):
            velocities.append(run(self.params, prompted, latents[-1], step / self.steps))
            latents.append(latents[-1] + velocities[-1] / self.steps)
        return latents, velocities


@pytest.fixture(scope="module")
def golden():
    return GoldenModel(golden_set("flow", "janusflow_small"))


def test_janusflow_noise(golden):
    np.testing.assert_allclose(channels_first(golden.noise)[:, :, ::4, ::4], golden.expected["z0"], rtol=1e-6)


@pytest.mark.slow
def test_janusflow_understanding_logits(golden):
    (path,) = golden.files.images
    image = prepare_understanding(open_image(path), golden.config.und_encoder.image_size)
    batch = golden.batch(golden.expected["und_input_ids"].astype(np.int32), image[None])
    hidden = golden.apply(golden.model.__call__, batch)
    logits = np.asarray(golden.apply(golden.model.text_logits, hidden[:, -1]))
    step = golden.config.llm.vocab_size // golden.expected["und_logits_last"].shape[1]
    assert_close(logits[:, ::step], golden.expected["und_logits_last"], 1e-4)
    for row, ids in zip(logits, golden.expected["und_logits_top"], strict=True):
        assert row[ids].min() >= np.sort(row)[-8] - 1e-3 * np.ptp(row)


def test_janusflow_encoder_output(golden):
    encoded = golden.apply(golden.model.encode, golden.noise, jnp.zeros(len(golden.noise)))
    # The golden set repeats the same latents for the unconditional sequences.
    both = np.concatenate([channels_first(encoded.features)] * 2)
    assert_close(both[:, ::16, ::5, ::5], golden.expected["enc_out"], 1e-5)


@pytest.mark.parametrize("step", [0, 1])
def test_janusflow_time_embedding(golden, step):
    times = jnp.full(len(golden.noise), step / golden.steps)
    encoded = golden.apply(golden.model.encode, golden.noise, times)
    assert_close(np.tile(encoded.time, (2, 1))[:, ::16], golden.expected[f"t_emb_step{step}"], 1e-5)


@pytest.mark.slow
def test_janusflow_velocities(golden):
    _, velocities = golden.path
    for step, found in enumerate(velocities):
        assert_close(channels_first(found)[:, :, ::4, ::4], golden.expected[f"v_step{step}"], 1e-4)


@pytest.mark.nightly
def test_janusflow_latents_of_the_sampler(golden):
    sampler = FlowSampler(golden.guidance_scale, golden.steps)
    keys = jax.random.split(jax.random.key(0), (len(golden.noise), 1))
    latents = sample_latents(golden.model, golden.params, golden.prompts, keys, sampler, noise=golden.noise)
    assert_close(channels_first(latents)[:, :, ::2, ::2], golden.expected["z_final"], 1e-4)
