"""LPIPS and Inception: what is read from which tensor. Their numbers stand beside PyTorch's in tests/parity."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.train.vq.inception import FEATURES, Inception, inception_params, tensor_shapes
from janus_jax.train.vq.lpips import LPIPS, lpips_params
from tests.train.vq.judges import inception_file, lpips_files


@pytest.fixture(scope="module")
def lpips():
    return lpips_params(*lpips_files())


def test_lpips_takes_every_tensor_to_its_place(lpips):
    vgg, lins = lpips_files()
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    made = jax.eval_shape(LPIPS().init, jax.random.key(0), images, images)["params"]
    assert jax.tree.map(jnp.shape, lpips) == jax.tree.map(jnp.shape, nn.unbox(made))
    np.testing.assert_array_equal(lpips["vgg"]["conv_5"]["kernel"][0, 2, 7, 9], vgg["features.5.weight"][9, 7, 0, 2])
    np.testing.assert_array_equal(lpips["lin_3"], lins["lin3.model.1.weight"].reshape(-1))


def test_a_distance_is_none_to_itself_and_grows(lpips):
    image = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3), minval=-1)
    noise = 0.1 * jax.random.normal(jax.random.key(1), image.shape)
    distance = jax.jit(jax.value_and_grad(lambda other: LPIPS().apply({"params": lpips}, image, other)))
    nothing, still = distance(image)
    assert float(nothing) < 1e-12
    assert np.isfinite(still).all()
    near, far = distance(image + noise)[0], distance(image + 4 * noise)[0]
    assert 0 < float(near) < float(far)


def test_a_missing_or_misshapen_tensor_is_named():
    vgg, lins = lpips_files()
    with pytest.raises(JanusError, match=r"features\.28\.bias"):
        lpips_params({name: value for name, value in vgg.items() if name != "features.28.bias"}, lins)
    with pytest.raises(JanusError, match=r"lin0\.model\.1\.weight is \[1, 64\]"):
        lpips_params(vgg, lins | {"lin0.model.1.weight": np.ones((1, 64), np.float32)})


def test_inception_folds_its_norms():
    tensors = inception_file()
    params = inception_params(tensors)
    unit = "Mixed_6c.branch7x7_2"
    scale = tensors[f"{unit}.bn.weight"] / np.sqrt(tensors[f"{unit}.bn.running_var"] + 1e-3)
    found = params["Mixed_6c"]["branch7x7_2"]
    np.testing.assert_allclose(found["scale"], scale, rtol=1e-6)
    np.testing.assert_allclose(
        found["bias"], tensors[f"{unit}.bn.bias"] - tensors[f"{unit}.bn.running_mean"] * scale, rtol=1e-5, atol=1e-6
    )
    assert found["kernel"].shape == (1, 7, 160, 160)


def test_inception_has_the_published_size():
    # Inception-v3 without its classifiers: 21,785,568 weights of convolutions and norms, and the norms' statistics.
    sizes = {name: int(np.prod(shape)) for name, shape in tensor_shapes()}
    assert sum(size for name, size in sizes.items() if "running" not in name) == 21_785_568
    features = jax.eval_shape(
        lambda params, pixels: Inception().apply({"params": params}, pixels),
        inception_params(inception_file()),
        jax.ShapeDtypeStruct((2, 64, 48, 3), jnp.float32),
    )
    assert features.shape == (2, FEATURES)
