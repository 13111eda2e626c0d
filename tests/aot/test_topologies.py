"""Tests of topologies by name."""

import importlib.util
import math

import numpy as np
import pytest

from janus_jax.aot import topologies
from janus_jax.aot.topologies import find_topology
from janus_jax.errors import JanusError
from janus_jax.sharding import make_mesh

HAS_TPU = importlib.util.find_spec("libtpu") is not None
HAS_CUDA = importlib.util.find_spec("jax_cuda13_plugin") is not None


@pytest.mark.parametrize(
    ("name", "accelerator", "shape", "slices"),
    [
        ("v5p:8x8x8", "v5p", (8, 8, 8), 1),
        ("2xv5e:16x16", "v5e", (16, 16), 2),
        ("a100-80:16x8", "a100-80", (8,), 16),
        ("h200:1x8", "h200", (8,), 1),
    ],
)
def test_name_gives_accelerator_shape_and_slices(name, accelerator, shape, slices):
    topology = find_topology(name)
    assert (topology.accelerator.name, topology.shape, topology.num_slices) == (accelerator, shape, slices)


@pytest.mark.parametrize(
    "name", ["v9:2x2", "v5p", "v5p:", "v5p:8xx8", "h100:8", "h100:2x2x8", "2xh100:4x8", "v5e:0x4", ""]
)
def test_invalid_name_raises(name):
    with pytest.raises(JanusError, match="--topology"):
        find_topology(name)


@pytest.mark.parametrize(("name", "extra"), [("v5e:4x4", "tpu"), ("h100:1x8", "cuda")])
def test_missing_compiler_raises_with_the_extra_to_install(name, extra, monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(JanusError, match=rf"pip install '\.\[{extra}\]'"):
        find_topology(name).devices()


@pytest.mark.skipif(not HAS_TPU, reason="libtpu is not installed")
@pytest.mark.parametrize(("name", "per_chip"), [("v5e:4x4", 1), ("2xv5e:4x4", 1), ("v4:2x2x2", 1), ("tpu7x:2x2x1", 2)])
def test_tpu_topology_needs_no_tpu(name, per_chip):
    topology = find_topology(name)
    devices = topology.devices()
    assert len(devices) == per_chip * topology.num_slices * math.prod(topology.shape)
    assert {device.device_kind for device in devices} == {topology.accelerator.kind}
    assert len(set(topology.slice_indices(devices))) == topology.num_slices


@pytest.mark.skipif(not HAS_TPU, reason="libtpu is not installed")
@pytest.mark.parametrize(("name", "hosts"), [("v5e:1x1", 1), ("v6e:2x4", 1), ("v5e:4x4", 4), ("v5p:2x2x2", 2)])
def test_slice_has_the_hosts_that_the_cloud_provides(name, hosts):
    assert len({device.process_index for device in find_topology(name).devices()}) == hosts


@pytest.mark.skipif(not HAS_TPU, reason="libtpu is not installed")
@pytest.mark.parametrize("sizes", [(2, 16, 1), (2, 8, 2)], ids=["fsdp", "fsdp and tensor on one side"])
def test_data_axis_extends_across_slices(sizes):
    mesh = make_mesh(*sizes, find_topology("2xv5e:4x4").devices())
    slices = [{device.slice_index for device in row.flat} for row in mesh.devices]
    assert slices == [{0}, {1}]


@pytest.mark.skipif(not HAS_TPU, reason="libtpu is not installed")
@pytest.mark.parametrize("name", ["v5e:8x8", "v6e:8x8", "v5p:4x4x4", "v4:4x4x4"])
def test_tensor_axis_of_two_connects_neighbors(name):
    mesh = make_mesh(1, -1, 2, find_topology(name).devices())
    for one, other in mesh.devices.reshape(-1, 2):
        assert np.abs(np.subtract(one.coords, other.coords)).sum() == 1


@pytest.mark.skipif(not HAS_TPU, reason="libtpu is not installed")
@pytest.mark.parametrize("tensor", [2, 4])
@pytest.mark.parametrize("name", ["v4:4x4x4", "v5e:8x8", "v5p:4x4x8", "v6e:16x16", "tpu7x:4x4x4", "2xv5e:8x8"])
def test_tensor_axis_stays_within_a_host(name, tensor):
    topology = find_topology(name)
    devices = topology.devices()
    mesh = make_mesh(topology.num_slices, -1, tensor, devices)
    assert set(mesh.devices.flat) == set(devices)
    assert all(len({device.process_index for device in group}) == 1 for group in mesh.devices.reshape(-1, tensor))


@pytest.mark.skipif(not HAS_CUDA, reason="the CUDA plug-in is not installed")
def test_gpu_topology_needs_no_gpu():
    topology = find_topology("h100:2x8")
    devices = topology.devices()
    assert len(devices) == 16
    assert topology.slice_indices(devices) == [0] * 8 + [1] * 8
