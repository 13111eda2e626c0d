"""Topologies by name, such as `v5p:8x8x8`, `2xv5e:16x16` or `h100:4x8`.

The name of a TPU slice gives the sides of its torus; a number and an x in front stand for several slices. The name of a
GPU cluster gives the number of nodes and the GPUs per node. `cpu:2x4` (nodes x devices) uses this machine's CPU
devices, for tests.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from janus_jax.accelerators import ACCELERATORS, Accelerator
from janus_jax.aot.gpu_specs import TARGET_CONFIGS
from janus_jax.errors import JanusError

_EXAMPLES = "v5p:8x8x8, 2xv5e:16x16, v6e:16x16, h100:4x8 (nodes x GPUs)"
# Platform -> modules, any one of which contains the compiler, and the extra that installs it.
_COMPILERS = {"tpu": (("libtpu",), "tpu"), "gpu": (("jax_cuda13_plugin", "jax_cuda12_plugin"), "cuda")}

# Keeps libtpu from querying the cloud's metadata server and from looking for local chips.
_DETACHED_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Topology:
    """Devices and their interconnect.

    Attributes:
      name: Name in the notation of this module.
      accelerator: Kind of the devices.
      shape: Sides of a slice's torus, or the number of GPUs in a node.
      num_slices: Number of TPU slices or GPU nodes. A fast network (ICI, NVLink) connects the devices in each.
    """

    name: str
    accelerator: Accelerator
    shape: tuple[int, ...]
    num_slices: int

    def devices(self) -> Sequence[jax.Device]:
        """Returns the devices, for which meshes can be made and programs compiled. They need not be attached.

        Raises:
          JanusError: The platform's compiler is not installed or does not know the topology.
        """
        platform = self.accelerator.platform
        if platform == "cpu":
            return jax.devices("cpu")[: self.num_slices * math.prod(self.shape)]
        modules, extra = _COMPILERS[platform]
        if not any(importlib.util.find_spec(module) for module in modules):
            raise JanusError(f"--topology {self.name} needs the compiler of that platform: pip install '.[{extra}]'.")
        os.environ.update({name: value for name, value in _DETACHED_TPU.items() if name not in os.environ})
        shape = "x".join(map(str, self.shape))
        try:
            if platform == "tpu":
                # libtpu divides every slice into hosts of four chips by default.
                single_host = self.shape in self.accelerator.single_host_slices
                bounds = {"chips_per_host_bounds": (*self.shape, 1)} if single_host else {}
                return topologies.get_topology_desc(
                    platform="tpu",
                    topology_name=f"{self.accelerator.name}:{shape}",
                    num_slices=self.num_slices,
                    chip_config_name=self.accelerator.chip_config,
                    **bounds,
                ).devices
            return topologies.get_topology_desc(
                platform="cuda",
                topology=f"1x{self.num_slices}x{shape}",
                target_config=TARGET_CONFIGS[self.accelerator.name],
            ).devices
        # The type of the exception depends on the cause, such as an impossible torus, and on the library's version.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise JanusError(
                f"The compiler does not accept --topology {self.name} ({reason:.300}); try one like {_EXAMPLES}."
            ) from error

    def slice_indices(self, devices: Sequence[jax.Device]) -> list[int]:
        """Returns the index of each device's slice or node.

        Args:
          devices: All devices of the topology, in any order.
        """
        if self.accelerator.platform == "tpu":
            return [getattr(device, "slice_index", None) or 0 for device in devices]
        ranks = {device: rank for rank, device in enumerate(sorted(devices, key=lambda device: device.id))}
        return [ranks[device] // math.prod(self.shape) for device in devices]


def find_topology(name: str, slices: int = 1) -> Topology:
    """Parses the name of a topology.

    Args:
      slices: Number of TPU slices if the name does not contain a number.

    Raises:
      JanusError: The name does not follow the notation of this module.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9-]*):(\d+(?:x\d+)*)", name)
    if match is None or match[2] not in ACCELERATORS:
        raise JanusError(
            f"--topology {name} is not a topology. It must be one of {', '.join(ACCELERATORS)}, a colon and a shape, "
            f"such as {_EXAMPLES}."
        )
    accelerator, shape = ACCELERATORS[match[2]], tuple(map(int, match[3].split("x")))
    if 0 in shape or match[1] == "0":
        raise JanusError(f"--topology {name} has a side of 0; every side must be at least 1.")
    if accelerator.platform == "tpu":
        return Topology(name, accelerator, shape, int(match[1] or slices))
    if len(shape) != 2 or match[1] or slices != 1:
        raise JanusError(f"--topology {name} must be nodes x devices, as in {accelerator.name}:4x8, without slices.")
    return Topology(name, accelerator, shape[1:], shape[0])
