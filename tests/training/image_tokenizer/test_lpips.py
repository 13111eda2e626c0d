"""LPIPS weights and distances. tests/parity compares the values with PyTorch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.training.image_tokenizer.lpips import LPIPS, lpips_params
from tests.training.image_tokenizer.network_files import lpips_files


@pytest.fixture(scope="module")
def lpips():
    return lpips_params(*lpips_files())


def test_every_tensor_is_converted(lpips):
    vgg, lins = lpips_files()
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    made = jax.eval_shape(LPIPS().init, jax.random.key(0), images, images)["params"]
    assert jax.tree.map(jnp.shape, lpips) == jax.tree.map(jnp.shape, nn.unbox(made))
    np.testing.assert_array_equal(lpips["vgg"]["conv_5"]["kernel"][0, 2, 7, 9], vgg["features.5.weight"][9, 7, 0, 2])
    np.testing.assert_array_equal(lpips["lin_3"], lins["lin3.model.1.weight"].reshape(-1))


@pytest.mark.slow
def test_distance_is_zero_for_equal_images_and_grows_with_noise(lpips):
    image = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3), minval=-1)
    noise = 0.1 * jax.random.normal(jax.random.key(1), image.shape)
    distance = jax.jit(jax.value_and_grad(lambda other: LPIPS().apply({"params": lpips}, image, other)))
    zero, gradient = distance(image)
    assert float(zero) < 1e-12
    assert np.isfinite(gradient).all()
    near, far = distance(image + noise)[0], distance(image + 4 * noise)[0]
    assert 0 < float(near) < float(far)


def test_errors_name_a_missing_or_misshapen_tensor():
    vgg, lins = lpips_files()
    with pytest.raises(JanusError, match=r"features\.28\.bias"):
        lpips_params({name: value for name, value in vgg.items() if name != "features.28.bias"}, lins)
    with pytest.raises(JanusError, match=r"lin0\.model\.1\.weight has shape \[1, 64\]"):
        lpips_params(vgg, lins | {"lin0.model.1.weight": np.ones((1, 64), np.float32)})
