import flax.linen as nn
import jax
import numpy as np
import pytest

from janus_jax.models.factory import abstract_params, make_model
from janus_jax.training.param_paths import merge, partition
from tests import tiny


def test_pattern_selects_matrices_of_stacked_blocks():
    trained, frozen = partition(tiny.stacked_params(), ["llm/layers/attn/[qv]/weight"])
    assert jax.tree.structure(trained) == jax.tree.structure(
        {"llm": {"layers": {"attn": {"q": {"weight": 0}, "v": {"weight": 0}}}}}
    )
    assert set(frozen["llm"]["layers"]["attn"]) == {"k", "out"}


@pytest.mark.parametrize("patterns", [(), ("*",), ("llm/*", "*/bias")])
def test_merge_inverts_partition(patterns):
    params = tiny.stacked_params()
    merged = merge(*partition(params, patterns))
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_partition_keeps_logical_axis_names():
    boxed = abstract_params(make_model(tiny.CONFIG))
    trained, frozen = partition(boxed, ["llm/*"])
    assert isinstance(trained["llm"]["head"]["weight"], nn.Partitioned)
    assert nn.get_partition_spec(merge(trained, frozen)) == nn.get_partition_spec(boxed)
