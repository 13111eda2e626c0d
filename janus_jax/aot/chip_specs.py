"""What one device can hold and move, by its maker's figures; what it can compute is in `train.flops`."""

from dataclasses import dataclass

from janus_jax.config import AttentionKernel
from janus_jax.models.target_platform import Platform


@dataclass(frozen=True)
class Chip:
    """One device, as jax counts them.

    Attributes:
      name: in the names of topologies.
      kind: as jax names it (`jax.Device.device_kind`).
      platform: whose kernels it runs.
      memory: bytes.
      reading: bytes a second between memory and compute.
      link: bytes a second that leave through one link to a neighbour, one way.
      links: how many there are. TPUs have two along each axis of their torus; NVLink is one, to a switch.
      far: bytes a second, one way, of its share of the network between slices (DCN) or nodes.
      hosts: sides of the slices that are rented as one host, although they have other than four chips.
      cores: libtpu's name for how the cores of a chip make devices.
    """

    name: str
    kind: str
    platform: Platform
    memory: float
    reading: float
    link: float
    links: int
    far: float
    hosts: tuple[tuple[int, ...], ...] = ()
    cores: str = "default"


_GIB = 2**30

CHIPS = {
    chip.name: chip
    for chip in (
        # docs.cloud.google.com/tpu/docs/{v4,v5e,v5p-training,v6e,tpu7x}: memory, its bandwidth, ICI over all ports and
        # both ways, DCN of a pod or a chip. tpu7x is two devices a chip to jax, which share its links; of the two cores
        # of v4 and v5p it makes one.
        Chip("v4", "TPU v4", "tpu", 32 * _GIB, 1228e9, 50e9, 6, 6.2e9, cores="megacore"),
        Chip("v5e", "TPU v5 lite", "tpu", 16 * _GIB, 819e9, 50e9, 4, 3.1e9, ((1, 1), (2, 4))),
        Chip("v5p", "TPU v5", "tpu", 95 * _GIB, 2765e9, 100e9, 6, 6.2e9),
        Chip("v6e", "TPU v6 lite", "tpu", 32 * _GIB, 1640e9, 112e9, 4, 12.5e9, ((1, 1), (2, 4))),
        Chip("tpu7x", "TPU7x", "tpu", 96 * _GIB, 3690e9, 50e9, 6, 6.2e9),
        # NVIDIA's data sheets of A100 (SXM4), H100 (SXM5) and H200 (SXM5): memory, its bandwidth, half of NVLink's,
        # which counts both ways. Between nodes one port a GPU: 200 Gbit/s in DGX A100, 400 Gbit/s in DGX H100 and H200.
        Chip("a100", "NVIDIA A100-SXM4-40GB", "gpu", 40e9, 1555e9, 300e9, 1, 25e9),
        Chip("a100-80", "NVIDIA A100-SXM4-80GB", "gpu", 80e9, 2039e9, 300e9, 1, 25e9),
        Chip("h100", "NVIDIA H100 80GB HBM3", "gpu", 80e9, 3352e9, 450e9, 1, 50e9),
        Chip("h200", "NVIDIA H200", "gpu", 141e9, 4800e9, 450e9, 1, 50e9),
        # So that all of it can be tried where there is neither package; its numbers are made up.
        Chip("cpu", "cpu", "cpu", 8 * _GIB, 20e9, 10e9, 1, 1e9),
    )
}

# jax takes no more of a GPU than XLA_PYTHON_CLIENT_MEM_FRACTION, which launch/ sets to this; a TPU's compiler knows by
# itself what it may take.
USABLE = {"gpu": 0.92, "tpu": 1.0, "cpu": 1.0}

KERNELS: dict[Platform, AttentionKernel] = {"tpu": "splash", "gpu": "cudnn", "cpu": "xla"}
"""The attention that holds the fewest scores in memory."""
