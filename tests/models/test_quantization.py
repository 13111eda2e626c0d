import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import PRESETS, WEIGHT_SCALE, Execution
from janus_jax.errors import JanusError
from janus_jax.models.backbone import scan_params
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.models.layers import Linear, quantize
from janus_jax.pretrained import load_params
from janus_jax.sharding import make_mesh
from tests import tiny


def random_weight(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32) / 8


# e4m3 has three bits after the leading one, so that half a step is at most 1/16 of the number.
@pytest.mark.parametrize(("dtype", "relative", "steps"), [(jnp.int8, 0, 0.5), (jnp.float8_e4m3fn, 1 / 16, 0.01)])
def test_quantized_weight_is_the_nearest_multiple_of_its_scale(dtype, relative, steps):
    weight = random_weight(6, 2, 40)
    weight[3] = 0
    quantized, scale = quantize(weight, 2, dtype)
    assert (quantized.dtype, scale.shape) == (dtype, (6, 2))
    restored = quantized.astype(np.float32) * scale[..., None]
    assert (np.abs(restored - weight) <= relative * np.abs(weight) + steps * 1.001 * scale[..., None]).all()
    np.testing.assert_allclose(np.abs(restored).max(axis=-1), np.abs(weight).max(axis=-1), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 40])
def test_linear_layer_multiplies_by_the_restored_weight(rows):
    weight, x = random_weight(6, 2, 5, 8), np.random.default_rng(1).standard_normal((rows, 5, 8), np.float32)
    quantized, scale = quantize(weight, 2, jnp.int8)
    layer = Linear((6, 2), (None,) * 4, Execution(quantization="int8"), num_inputs=2, use_bias=False)
    y = layer.apply({"params": {"weight": quantized, WEIGHT_SCALE: scale}}, x)
    expected = np.einsum("rik,ogik->rog", x, quantized * scale[..., None, None])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


# Each factor has an error of half a step of its scale, and the errors of the products add up at random.
@pytest.mark.parametrize("rows", [1, 40])
def test_products_of_integers_are_close_to_products_of_floats(rows):
    weight, x = random_weight(6, 2, 16, 8), np.random.default_rng(1).standard_normal((3, rows, 16, 8), np.float32)
    x[0, 0] *= 1000
    x[1, 0] = 0
    quantized, scale = quantize(weight, 2, jnp.int8)
    layer = Linear((6, 2), (None,) * 4, Execution(quantization="int8_dynamic"), num_inputs=2, use_bias=False)
    params = {"params": {"weight": quantized, WEIGHT_SCALE: scale}}
    expected = np.einsum("brik,ogik->brog", x, weight)
    error = np.abs(layer.apply(params, x) - expected).max(axis=(2, 3)) / np.maximum(np.abs(x).max(axis=(2, 3)), 1e-9)
    assert 0 < error.max() < 0.06
    assert error[1, 0] == 0
    assert "i32" in next(line for line in str(jax.make_jaxpr(layer.apply)(params, x)).splitlines() if "dot_" in line)


def test_stacked_layers_are_quantized_from_their_values():
    execution = Execution(quantization="int8")
    params = load_params(tiny.leaves_of(tiny.stacked_params()), tiny.CONFIG, execution, None)
    down, exact = (
        params["llm"]["layers"]["mlp"]["down"],
        tiny.stacked_params()["llm"]["layers"]["mlp"]["down"]["weight"],
    )
    restored = down["weight"].astype(np.float32) * down[WEIGHT_SCALE][..., None]
    np.testing.assert_allclose(restored, exact, atol=float(down[WEIGHT_SCALE].max()) * 0.51)


@pytest.mark.nightly
@pytest.mark.parametrize(("preset", "limit"), [("janus_pro_1b", 2.5e9), ("janus_pro_7b", 8.5e9)])
def test_quantized_parameters_fit_in_the_memory_of_small_gpus(preset, limit):
    model = make_model(PRESETS[preset], Execution("bfloat16", "bfloat16", layers="unrolled", quantization="int8"))
    leaves = jax.tree.leaves(nn.unbox(abstract_params(model)))
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) <= limit


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "fp8", "int8_dynamic"])
def test_quantized_model_computes_nearly_the_same_logits(quantization):
    execution = Execution(layers="unrolled", quantization=quantization)
    batch = tiny.processor().left_pad([tiny.processor().generation_prompt("A red boat")])

    def log_probabilities(execution, mesh=None):
        params = load_params(tiny.leaves_of(tiny.stacked_params()), tiny.CONFIG, execution, mesh)
        model = make_model(tiny.CONFIG, execution)
        hidden = model.apply({"params": params}, batch)
        return jax.nn.log_softmax(model.apply({"params": params}, hidden, method=type(model).text_logits)), params

    exact, _ = log_probabilities(dataclasses.replace(execution, quantization="none"))
    quantized, params = log_probabilities(execution)
    divergence = (jnp.exp(exact) * (exact - quantized)).sum(axis=-1)
    assert 0 < divergence.max() < 0.05
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(params["llm"]["layers_0"]["mlp"])}
    assert len(dtypes) == 2
    assert params["gen_head"]["fc1"]["weight"].dtype == jnp.float32
    assert params["und_encoder"]["blocks_0"]["attn"]["qkv"]["weight"].dtype.itemsize == 1
    with pytest.raises(JanusError, match="parameters are quantized"):
        scan_params(params, tiny.CONFIG)
    sharded, _ = log_probabilities(execution, make_mesh(2, 2, 2))
    np.testing.assert_allclose(sharded, quantized, atol=1e-4)
