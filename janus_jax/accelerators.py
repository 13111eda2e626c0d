"""Data sheets of accelerators: memory, bandwidth, interconnect and peak FLOP/s of one device."""

from dataclasses import dataclass
from typing import Literal

from janus_jax.config import AttentionKernel, Dtype

Platform = Literal["cpu", "gpu", "tpu"]


@dataclass(frozen=True)
class Accelerator:
    """Properties of one device, as jax counts devices.

    Attributes:
      name: Name in topologies, such as `v5p` in `v5p:4x4x4`.
      kind: Value of `jax.Device.device_kind`.
      platform: jax platform of the device.
      memory: Size of the memory in bytes.
      memory_bandwidth: Bytes per second between memory and processor.
      link_bandwidth: Bytes per second over one link to a neighbor, in one direction.
      num_links: Number of links. A TPU has two along each axis of its torus; a GPU counts as one NVLink to a switch.
      dcn_bandwidth: Bytes per second, in one direction, of the device's share of the network between slices (DCN) or
        between nodes.
      single_host_slices: Shapes of slices on one host. The hosts of all other slices have four chips each.
      chip_config: libtpu's name for the way in which the cores of a chip form devices.
    """

    name: str
    kind: str
    platform: Platform
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    num_links: int
    dcn_bandwidth: float
    single_host_slices: tuple[tuple[int, ...], ...] = ()
    chip_config: str = "default"

    @property
    def usable_memory(self) -> float:
        """Bytes that a program may use.

        On a TPU all of it, because the compiler subtracts its reserve itself. On a GPU the fraction
        XLA_PYTHON_CLIENT_MEM_FRACTION, which the launchers set to 0.92.
        """
        return self.memory * (0.92 if self.platform == "gpu" else 1.0)

    @property
    def attention(self) -> AttentionKernel:
        """Attention kernel that keeps the fewest scores in memory."""
        kernels: dict[Platform, AttentionKernel] = {"tpu": "splash", "gpu": "cudnn", "cpu": "xla"}
        return kernels[self.platform]


_GIB = 2**30

ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        # Source: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p-training,v6e,tpu7x}. They list memory, memory bandwidth,
        # ICI bandwidth (sum of all ports and both directions) and DCN bandwidth of a pod or a chip. jax counts two
        # devices per tpu7x chip, which share the chip's links, and one device per v4 or v5p chip.
        Accelerator("v4", "TPU v4", "tpu", 32 * _GIB, 1228e9, 50e9, 6, 6.2e9, chip_config="megacore"),
        Accelerator("v5e", "TPU v5 lite", "tpu", 16 * _GIB, 819e9, 50e9, 4, 3.1e9, ((1, 1), (2, 4))),
        Accelerator("v5p", "TPU v5", "tpu", 95 * _GIB, 2765e9, 100e9, 6, 6.2e9),
        Accelerator("v6e", "TPU v6 lite", "tpu", 32 * _GIB, 1640e9, 112e9, 4, 12.5e9, ((1, 1), (2, 4))),
        Accelerator("tpu7x", "TPU7x", "tpu", 96 * _GIB, 3690e9, 50e9, 6, 6.2e9),
        # Source: NVIDIA's data sheets of A100 (SXM4), L4, H100 (SXM5) and H200 (SXM5). They list memory, memory
        # bandwidth and NVLink bandwidth (sum of both directions). Each GPU has one port to other nodes: 200 Gbit/s in
        # DGX A100, 400 Gbit/s in DGX H100 and H200.
        Accelerator("a100", "NVIDIA A100-SXM4-40GB", "gpu", 40e9, 1555e9, 300e9, 1, 25e9),
        Accelerator("a100-80", "NVIDIA A100-SXM4-80GB", "gpu", 80e9, 2039e9, 300e9, 1, 25e9),
        # A card without NVLink: PCIe 4.0 x16. Eight of them share 100 Gbit/s in a g2-standard-96 of Google Cloud.
        Accelerator("l4", "NVIDIA L4", "gpu", 24e9, 300e9, 32e9, 1, 1.6e9),
        Accelerator("h100", "NVIDIA H100 80GB HBM3", "gpu", 80e9, 3352e9, 450e9, 1, 50e9),
        Accelerator("h200", "NVIDIA H200", "gpu", 141e9, 4800e9, 450e9, 1, 50e9),
        # For tests without the compilers of other platforms. The numbers are invented.
        Accelerator("cpu", "cpu", "cpu", 8 * _GIB, 20e9, 10e9, 1, 1e9),
    )
}
"""Accelerators that topologies can consist of, by name."""

_PEAK_FLOPS: dict[str, dict[Dtype, float]] = {
    "NVIDIA H200 NVL": {"bfloat16": 836e12, "float32": 60e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float32": 67e12},
    "NVIDIA H100 PCIe": {"bfloat16": 756e12, "float32": 51e12},
    "NVIDIA H100 NVL": {"bfloat16": 836e12, "float32": 60e12},
    "NVIDIA H100": {"bfloat16": 989e12, "float32": 67e12},
    "NVIDIA L40": {},
    "NVIDIA L4": {"bfloat16": 121e12, "float32": 30.3e12},
    "NVIDIA A100": {"bfloat16": 312e12, "float32": 19.5e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5e": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v6": {"bfloat16": 918e12},
    # Half of a chip's 2307e12, because jax counts two devices per chip.
    "TPU7x": {"bfloat16": 1153.5e12},
}
"""Peak FLOP/s of one device without sparsity, by prefix of the device's kind. The first matching prefix is used.

The values for float32 are those without TF32, which this project does not use. TPUs have no float32 matrix units.
"""


def resolve_attention(kernel: AttentionKernel, accelerator: Accelerator) -> AttentionKernel:
    """Returns the attention kernel that a setting selects on an accelerator."""
    return accelerator.attention if kernel == "auto" else kernel


def peak_flops(device_kind: str, dtype: Dtype) -> float | None:
    """Returns the peak FLOP/s of one device in dense matrix products of `dtype`, or None if it is not known.

    Args:
      device_kind: Value of `jax.Device.device_kind`.
    """
    dtype = "bfloat16" if dtype == "float16" else dtype
    return next((peaks.get(dtype) for kind, peaks in _PEAK_FLOPS.items() if device_kind.startswith(kind)), None)
