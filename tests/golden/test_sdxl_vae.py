"""Compares SDXL's VAE with the PyTorch implementation in float32.

This is a separate module, so that the memory of the JanusFlow tests is freed first.
"""

import jax
import numpy as np
import pytest

from checkpoints_convert.diffusers_vae import DIFFUSERS_VAE
from checkpoints_convert.parameters import model_parameters
from janus_jax.config import VAEConfig
from janus_jax.models.backbone import apply
from janus_jax.models.vae import VAE
from tests.golden.conftest import assert_close, channels_first, golden_set
from tests.golden.pseudo_weights import tensor, uniform


class Autoencoder:
    """The VAE of a golden set."""

    def __init__(self, files):
        self.files = files
        self.expected = files.expected
        self.vae = VAE(VAEConfig(scaling_factor=files.config["scaling_factor"]))
        self.params = {}
        for unit in DIFFUSERS_VAE.map(model_parameters(self.vae.config)):
            *parents, last = unit.parameter.keys[1:]
            node = self.params
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = unit.read(self)

    def __getitem__(self, name):
        return tensor(f"vae.{name}", self.files.shapes[name], self.files.salt)

    def apply(self, method, array):
        run = jax.jit(lambda params, array: apply(method, params, array))
        return run(self.params, array.transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def autoencoder():
    return Autoencoder(golden_set("vae", "sdxl_vae"))


@pytest.mark.slow
def test_sdxl_vae_latents(autoencoder):
    found = autoencoder.apply(autoencoder.vae.encode, uniform("vae.pixels", (1, 3, 384, 384), autoencoder.files.salt))
    assert_close(channels_first(found.mean)[:, :, ::3, ::3], autoencoder.expected["enc_mean"], 1e-4)
    assert_close(channels_first(found.log_variance)[:, :, ::3, ::3], autoencoder.expected["enc_logvar"], 1e-4)


@pytest.mark.slow
def test_sdxl_vae_decoded_pixels(autoencoder):
    latents = uniform("vae.latents", (1, 4, 48, 48), autoencoder.files.salt) * np.float32(np.sqrt(3))
    decoded = autoencoder.apply(autoencoder.vae.decode, latents)
    assert_close(
        channels_first(decoded)[:, :, ::5, ::5],
        autoencoder.expected["decoded"],
        1e-4,
    )
