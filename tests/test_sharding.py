from contextlib import nullcontext
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from checkpoints_convert.parameters import model_parameters
from janus_jax.config import PRESETS, Execution
from janus_jax.errors import JanusError
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.sharding import MESH_AXES, check_mesh, make_mesh, param_shardings
from tests import tiny

QUESTIONS = [
    [{"role": "user", "content": "<image_placeholder>\nWhat is in the picture?", "images": [tiny.picture(0)]}],
    [{"role": "user", "content": "Hello"}],
    [{"role": "user", "content": "<image_placeholder><image_placeholder>?", "images": [tiny.picture(1)] * 2}],
]
PROMPTS = ["A red boat", "Two birds and a tree", "Ink"]


@pytest.fixture(scope="module")
def expected():
    single = tiny.pretrained()
    answers = [single.chat(question, max_new_tokens=12) for question in QUESTIONS]
    return answers, single.generate(PROMPTS, images_per_prompt=2, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((8, 1, 1), id="data", marks=pytest.mark.nightly),
        pytest.param((1, 8, 1), id="fsdp", marks=pytest.mark.nightly),
        pytest.param((2, 2, 2), id="all three"),
        pytest.param((4, 1, 2), id="data and tensor", marks=pytest.mark.nightly),
    ],
)
def test_sharded_sampling_equals_single_device(expected, sizes):
    sharded = tiny.pretrained(make_mesh(*sizes))
    answers, images = expected
    assert sharded.chat_batch(QUESTIONS, max_new_tokens=12) == answers
    # Different tokens would change whole patches; rounding may change a value by one.
    np.testing.assert_allclose(
        np.asarray(sharded.generate(PROMPTS, images_per_prompt=2, seed=3), int), np.asarray(images, int), atol=1
    )


def test_parameters_are_sharded_by_their_logical_axes():
    params = tiny.pretrained(make_mesh(2, 2, 2)).params
    qkv = params["llm"]["layers_0"]["attn"]["qkv"]["weight"]
    assert qkv.sharding.spec == jax.sharding.PartitionSpec("tensor", None, None, "fsdp")
    assert qkv.addressable_shards[0].data.size * 4 == qkv.size


@pytest.mark.parametrize("name", ["janus_pro_1b", "janus_pro_7b"])
@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
def test_mesh_of_eight_devices_splits_nearly_all_parameters(name, layers):
    boxed = abstract_params(make_model(PRESETS[name], Execution(layers=layers)))
    shardings = param_shardings(boxed, make_mesh(1, 4, 2))
    whole = held = 0
    for array, sharding in zip(jax.tree.leaves(nn.unbox(boxed)), jax.tree.leaves(shardings), strict=True):
        whole += array.size
        held += np.prod(sharding.shard_shape(array.shape))
    # The image tokenizer is replicated. The image head's last matrix is split less, because both of its axes map to the
    # tensor axis.
    tokenizer = sum(parameter.size for parameter in model_parameters(PRESETS[name].gen_encoder))
    assert held < 1.1 * (whole - tokenizer) / 8 + tokenizer


def test_every_axis_of_a_parameter_has_a_logical_name():
    for boxed in jax.tree.leaves(
        abstract_params(make_model(tiny.CONFIG)), is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    ):
        assert len(boxed.names) == boxed.value.ndim


def test_mesh_must_divide_the_sharded_axes():
    with pytest.raises(JanusError, match=r"llm\.num_kv_heads = 2"):
        check_mesh(tiny.CONFIG, make_mesh(1, 1, 8))


@pytest.mark.parametrize(("sizes", "raises"), [((1, 2, 1), False), ((1, 1, 2), True)])
def test_tensor_axis_must_stay_within_a_process(sizes, raises):
    devices = np.array([SimpleNamespace(process_index=0), SimpleNamespace(process_index=1)]).reshape(sizes)
    mesh = SimpleNamespace(devices=devices, shape=dict(zip(MESH_AXES, sizes, strict=True)))
    with pytest.raises(JanusError, match="tensor axis of 2 spans several") if raises else nullcontext():
        check_mesh(tiny.CONFIG, mesh)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (0, 1, 1), (-1, 3, 1), (-2, -4, 1)])
def test_mesh_must_fit_the_devices(sizes):
    with pytest.raises(JanusError, match=r"(?i)mesh"):
        make_mesh(*sizes)
