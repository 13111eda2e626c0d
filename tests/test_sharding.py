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
def single():
    return tiny.pretrained()


@pytest.fixture(scope="module")
def expected(single):
    answers = [single.chat(question, max_new_tokens=12) for question in QUESTIONS]
    return answers, single.generate(PROMPTS, images_per_prompt=2, seed=3)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((8, 1, 1), id="data", marks=pytest.mark.slow),
        pytest.param((1, 8, 1), id="fsdp", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), id="all three"),
        pytest.param((4, 1, 2), id="data and tensor", marks=pytest.mark.slow),
    ],
)
def test_every_mesh_answers_and_draws_as_one_device(expected, sizes):
    sharded = tiny.pretrained(make_mesh(*sizes))
    answers, images = expected
    assert sharded.chat_batch(QUESTIONS, max_new_tokens=12) == answers
    for ours, theirs in zip(sharded.generate(PROMPTS, images_per_prompt=2, seed=3), images, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            difference = np.abs(np.asarray(one, int) - np.asarray(other, int))
            # The ids are the same, or whole patches would differ; a last digit may fall on either side of a cut.
            assert difference.max() <= 1


def test_parameters_lie_where_the_table_says():
    params = tiny.pretrained(make_mesh(2, 2, 2)).params
    qkv = params["llm"]["layers_0"]["attn"]["qkv"]["weight"]
    assert qkv.sharding.spec == jax.sharding.PartitionSpec("tensor", None, None, "fsdp")
    assert qkv.addressable_shards[0].data.size * 4 == qkv.size


@pytest.mark.parametrize("name", ["janus_pro_1b", "janus_pro_7b"])
@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
def test_a_mesh_of_eight_splits_all_but_a_little_of_every_model(name, layers):
    boxed = abstract_params(make_model(PRESETS[name], Execution(layers=layers)))
    shardings = param_shardings(boxed, make_mesh(1, 4, 2))
    whole = held = 0
    for array, sharding in zip(jax.tree.leaves(nn.unbox(boxed)), jax.tree.leaves(shardings), strict=True):
        whole += array.size
        held += np.prod(sharding.shard_shape(array.shape))
    # The image tokenizer is repeated on purpose; everything else of size is split eight ways, but for the image
    # head's last matrix, both of whose axes ask for the tensor axis.
    tokenizer = sum(parameter.size for parameter in model_parameters(PRESETS[name].gen_encoder))
    assert held < 1.1 * (whole - tokenizer) / 8 + tokenizer


def test_every_parameter_has_a_name_for_each_of_its_axes():
    for boxed in jax.tree.leaves(
        abstract_params(make_model(tiny.CONFIG)), is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    ):
        assert len(boxed.names) == boxed.value.ndim


def test_a_mesh_that_does_not_divide_the_model_is_refused_by_name():
    with pytest.raises(JanusError, match=r"llm\.num_kv_heads = 2"):
        check_mesh(tiny.CONFIG, make_mesh(1, 1, 8))


@pytest.mark.parametrize(("sizes", "refused"), [((1, 2, 1), False), ((1, 1, 2), True)])
def test_processes_that_would_share_rows_are_refused(sizes, refused):
    devices = np.array([SimpleNamespace(process_index=0), SimpleNamespace(process_index=1)]).reshape(sizes)
    mesh = SimpleNamespace(devices=devices, shape=dict(zip(MESH_AXES, sizes, strict=True)))
    with pytest.raises(JanusError, match="tensor axis of 2 goes over several") if refused else nullcontext():
        check_mesh(tiny.CONFIG, mesh)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (0, 1, 1), (-1, 3, 1), (-2, -4, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(JanusError, match="mesh"):
        make_mesh(*sizes)


def test_one_axis_takes_the_devices_that_are_left():
    assert dict(make_mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
