import json
import math
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert import released, released_flow
from checkpoints_convert.diffusers_vae import DIFFUSERS_VAE
from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.layout import Layout, Rearrangement, Tensor
from checkpoints_convert.parameters import Parameter, model_parameters, tree_parameters
from janus_jax.config import PRESETS, VAEConfig

DATA = Path(__file__).parents[1] / "golden" / "data"


def golden(name):
    """Returns config.json and the shapes of all tensors of a golden set."""
    shapes = {name: tuple(shape) for name, shape in json.loads((DATA / name / "manifest.json").read_text()).items()}
    return JsonObject(json.loads((DATA / name / "config.json").read_text()), name), shapes


@pytest.mark.parametrize("name", ["janus_small", "janus_1b", "janus_pro_7b", "janusflow_small", "janusflow_1b"])
def test_released_tensors_follow_from_the_config(name):
    config_json, shapes = golden(name)
    layout = released_flow if name.startswith("janusflow") else released
    assert layout.manifest(layout.config_from_json(config_json, shapes)) == shapes


@pytest.mark.parametrize(
    ("name", "preset", "tensors", "size"),
    [
        ("janus_1b", "janus_pro_1b", 882, 2_089_297_547),
        ("janus_pro_7b", "janus_pro_7b", 936, 7_420_434_059),
        ("janusflow_1b", "janusflow_1.3b", 587, 2_046_367_504),
    ],
)
def test_a_released_config_equals_its_preset(name, preset, tensors, size):
    config_json, shapes = golden(name)
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (tensors, size)
    layout, expected = (released, PRESETS[preset])
    if name == "janusflow_1b":
        layout, expected = released_flow, replace(expected, vae=None)
    assert replace(layout.config_from_json(config_json, shapes), name=preset) == expected


def test_vae_tensors_follow_from_the_config():
    config_json, shapes = golden("sdxl_vae")
    config = DIFFUSERS_VAE.read_config(config_json, {})
    assert config == VAEConfig()
    assert DIFFUSERS_VAE.manifest(model_parameters(config)) == shapes


@pytest.mark.parametrize(
    ("pattern", "shape", "file_shape"),
    [
        ("a b -> a b", (2, 3), (2, 3)),
        ("q h k w -> (q h k) w", (3, 2, 4, 5), (24, 5)),
        ("w h k -> w (h k)", (5, 2, 4), (5, 8)),
        ("h w i o -> o i h w", (3, 3, 4, 5), (5, 4, 3, 3)),
        ("o i -> o i 1 1", (5, 4), (5, 4, 1, 1)),
        ("n w -> 1 n w", (6, 4), (1, 6, 4)),
    ],
)
def test_a_rearrangement_is_inverted_without_a_copy(pattern, shape, file_shape):
    rearrangement, array = Rearrangement(pattern), np.arange(math.prod(shape)).reshape(shape)
    file = np.ascontiguousarray(rearrangement.to_file(array))
    assert rearrangement.file_shape(shape) == file.shape == file_shape
    found = rearrangement.from_file(file, shape)
    np.testing.assert_array_equal(found, array)
    assert np.shares_memory(found, file)


class Toy(nn.Module):
    """A linear layer, with a scale if `scaled`."""

    scaled: bool

    @nn.compact
    def __call__(self, x, _=None):
        init = nn.with_logical_partitioning(nn.initializers.normal(), ("embed", "mlp"))
        x = x @ self.param("weight", init, (4, 4))
        if self.scaled:
            x = x * self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), (4,))
        return x, None


def toy_parameters(scaled):
    stack = nn.scan(
        Toy,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    variables = jax.eval_shape(lambda: stack(scaled).init(jax.random.key(0), jnp.zeros((1, 4)), None))
    return tree_parameters({"blocks": variables["params"]})


def test_a_new_parameter_needs_only_a_new_table_entry():
    table = {"blocks/weight": Tensor("layer.{layer}.weight", "i o -> o i")}
    assert set(Layout("toy", table, lambda *_: None).manifest(toy_parameters(scaled=False))) == {
        f"layer.{layer}.weight" for layer in range(3)
    }
    parameters = toy_parameters(scaled=True)
    assert Parameter("blocks/scale", (4,), layers=3) in parameters
    with pytest.raises(LookupError, match="The toy layout has no name for blocks/scale"):
        Layout("toy", table, lambda *_: None).manifest(parameters)
    table["blocks/scale"] = Tensor("layer.{layer}.scale", "a -> a")
    layout = Layout("toy", table, lambda *_: None)
    tensors = {name: np.full(shape, hash(name) % 7) for name, shape in layout.manifest(parameters).items()}
    assert len(tensors) == 6
    for mapped in layout.map(parameters):
        for name, tensor in mapped.write(mapped.read(tensors)):
            np.testing.assert_array_equal(tensor, tensors[name])
