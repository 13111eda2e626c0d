"""Descriptions of GPUs, with which XLA compiles for a GPU that is not attached.

They are `GpuTargetConfigProto` messages in text format. Sources: compute capabilities 8.0, 8.9 and 9.0 in the CUDA C
programming guide ("Technical specifications per compute capability") and the data sheets of A100, L4, H100 and H200.
"""

from typing import Any

_TEMPLATE = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_optin}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 }}
device_description_str: "{kind}"
"""

_MIB = 2**20
_AMPERE = {"major": 8, "minor": 0, "cores": 108, "fpus": 64, "shared": 167936, "shared_optin": 166912, "clock": 1.41}
_AMPERE |= {"threads": 2048}
_ADA = {"major": 8, "minor": 9, "cores": 58, "fpus": 128, "shared": 102400, "shared_optin": 101376, "clock": 2.04}
_ADA |= {"threads": 1536}
_HOPPER = {"major": 9, "minor": 0, "cores": 132, "fpus": 128, "shared": 233472, "shared_optin": 232448, "clock": 1.98}
_HOPPER |= {"threads": 2048}
_GPUS: dict[str, dict[str, Any]] = {
    "a100": _AMPERE
    | {"kind": "NVIDIA A100-SXM4-40GB", "l2": 40 * _MIB, "memory": 42331013120, "bandwidth": 1555200000000},
    "a100-80": _AMPERE
    | {"kind": "NVIDIA A100-SXM4-80GB", "l2": 40 * _MIB, "memory": 84987740160, "bandwidth": 2039000000000},
    "l4": _ADA | {"kind": "NVIDIA L4", "l2": 48 * _MIB, "memory": 24152899584, "bandwidth": 300000000000},
    "h100": _HOPPER
    | {"kind": "NVIDIA H100 80GB HBM3", "l2": 50 * _MIB, "memory": 84942979072, "bandwidth": 3352320000000},
    "h200": _HOPPER | {"kind": "NVIDIA H200", "l2": 60 * _MIB, "memory": 150109880320, "bandwidth": 4800000000000},
}
TARGET_CONFIGS = {name: _TEMPLATE.format_map(spec) for name, spec in _GPUS.items()}
"""Target configs in text format, by the accelerator names of `accelerators.ACCELERATORS`."""
