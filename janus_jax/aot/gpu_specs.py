"""Descriptions of GPUs, with which XLA compiles for a GPU that is not attached.

They are `GpuTargetConfigProto` messages in text format. Sources: compute capabilities 8.0 and 9.0 in the CUDA C
programming guide ("Technical specifications per compute capability") and the data sheets of A100, H100 and H200.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class _GpuSpec:
    kind: str
    capability: int
    cores: int
    fpus: int
    shared: int
    l2: int
    clock: float
    memory: int
    bandwidth: int

    @property
    def text(self) -> str:
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared}
  shared_memory_per_block_optin: {self.shared - 1024}
  threads_per_core_limit: 2048
  core_count: {self.cores}
  fpus_per_core: {self.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {self.bandwidth}
  l2_cache_size: {self.l2}
  clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {self.capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 }}
device_description_str: "{self.kind}"
"""


_MIB = 2**20
TARGET_CONFIGS = {
    name: spec.text
    for name, spec in {
        "a100": _GpuSpec("NVIDIA A100-SXM4-40GB", 8, 108, 64, 167936, 40 * _MIB, 1.41, 42331013120, 1555200000000),
        "a100-80": _GpuSpec("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 40 * _MIB, 1.41, 84987740160, 2039000000000),
        "h100": _GpuSpec("NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 50 * _MIB, 1.98, 84942979072, 3352320000000),
        "h200": _GpuSpec("NVIDIA H200", 9, 132, 128, 233472, 60 * _MIB, 1.98, 150109880320, 4800000000000),
    }.items()
}
"""Target configs in text format, by the accelerator names of `accelerators.ACCELERATORS`."""
