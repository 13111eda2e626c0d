"""Tests of the conversion of Inception's weights. tests/parity compares the network with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.evaluation.metrics.frechet import FEATURE_DIM
from janus_jax.evaluation.metrics.inception import Inception, inception_params, tensor_shapes
from tests.training.image_tokenizer.network_files import inception_file


def test_batch_norms_are_folded():
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


def test_the_number_of_weights_is_the_published_one():
    # Inception-v3 without its classifiers has 21,785,568 weights, not counting the statistics of the norms.
    sizes = {name: int(np.prod(shape)) for name, shape in tensor_shapes()}
    assert sum(size for name, size in sizes.items() if "running" not in name) == 21_785_568
    features = jax.eval_shape(
        lambda params, pixels: Inception().apply({"params": params}, pixels),
        inception_params(inception_file()),
        jax.ShapeDtypeStruct((2, 64, 48, 3), jnp.float32),
    )
    assert features.shape == (2, FEATURE_DIM)
