"""Machines that are not here, by name: `v5p:8x8x8`, `2xv5e:16x16`, `h100:4x8`.

A TPU slice is named by the sides of its torus, several by their number before an x; GPUs by nodes and GPUs a node.
`cpu` (`cpu:2x4`, nodes and devices) takes the devices of this machine, for tests.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from janus_jax.aot.chip_specs import CHIPS, Chip
from janus_jax.aot.gpu_specs import TARGETS
from janus_jax.errors import JanusError

_EXAMPLES = "v5p:8x8x8, 2xv5e:16x16, v6e:16x16, h100:4x8 (nodes x GPUs)"
# Of a platform: the modules of which one holds its compiler, and the extra of setup.py that brings it.
_COMPILERS = {"tpu": (("libtpu",), "tpu"), "gpu": (("jax_cuda13_plugin", "jax_cuda12_plugin"), "cuda")}

# libtpu is not to ask Google's metadata, nor to look for chips, nor to complain that it finds none.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Topology:
    """Devices that are not here.

    Attributes:
      name: as it was asked for.
      chip: what each is.
      sides: of the torus of a slice; of GPUs, the number in a node.
      islands: slices or nodes: within one, devices are near each other.
    """

    name: str
    chip: Chip
    sides: tuple[int, ...]
    islands: int

    def devices(self) -> Sequence[jax.Device]:
        """What a mesh is made of.

        Raises:
          JanusError: the compiler of that platform is not installed, or knows no such topology.
        """
        if self.chip.platform == "cpu":
            return jax.devices("cpu")[: self.islands * math.prod(self.sides)]
        modules, extra = _COMPILERS[self.chip.platform]
        if not any(importlib.util.find_spec(module) for module in modules):
            raise JanusError(f"--topology {self.name} needs the compiler of that platform: pip install '.[{extra}]'.")
        os.environ.update({name: value for name, value in _ALONE.items() if name not in os.environ})
        sides = "x".join(map(str, self.sides))
        try:
            if self.chip.platform == "tpu":
                # libtpu cuts every slice into hosts of four chips, unless it is told.
                alone = {"chips_per_host_bounds": (*self.sides, 1)} if self.sides in self.chip.hosts else {}
                description = topologies.get_topology_desc(
                    platform="tpu",
                    topology_name=f"{self.chip.name}:{sides}",
                    num_slices=self.islands,
                    chip_config_name=self.chip.cores,
                    **alone,
                )
            else:
                description = topologies.get_topology_desc(
                    platform="cuda", topology=f"1x{self.islands}x{sides}", target_config=TARGETS[self.chip.name]
                )
        # Of many kinds: a library of another version, no such torus.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise JanusError(
                f"--topology {self.name} cannot be compiled for ({reason:.300}); others are {_EXAMPLES}."
            ) from error
        return description.devices

    def island(self, number: int, device: jax.Device) -> int:
        """On which slice or node a device lies.

        Args:
          number: of the device among all.
        """
        if self.chip.platform == "tpu":
            return getattr(device, "slice_index", None) or 0
        return number // math.prod(self.sides)


def find_topology(name: str, slices: int = 1) -> Topology:
    """The topology of that name.

    Args:
      slices: of TPUs, where the name says no number.

    Raises:
      JanusError: there is none; the sentence shows some.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9-]*):(\d+(?:x\d+)*)", name)
    if match is None or match[2] not in CHIPS:
        raise JanusError(
            f"--topology {name} is none: it is one of {', '.join(CHIPS)}, a colon and its sides, as in {_EXAMPLES}."
        )
    chip, sides = CHIPS[match[2]], tuple(map(int, match[3].split("x")))
    if 0 in sides or match[1] == "0":
        raise JanusError(f"--topology {name} has a side of 0; it must have devices.")
    if chip.platform == "tpu":
        return Topology(name, chip, sides, int(match[1] or slices))
    if len(sides) != 2 or match[1] or slices != 1:
        raise JanusError(f"--topology {name} must be nodes x devices, as in {chip.name}:4x8, without slices.")
    return Topology(name, chip, sides[1:], sides[0])
