"""Reads the collectives of a compiled program from its HLO text: kind, size, mesh axes and number of executions.

An operation in a loop counts once per iteration, or once in total if the trip count depends on the data. The bytes that
one device sends are those of ring algorithms. With P bytes in the whole array and g devices in a group:

    all-gather, reduce-scatter   P (g - 1) / g
    all-reduce                   2 P (g - 1) / g
    all-to-all                   P (g - 1) / g
    collective-permute           P

If a group spans several slices (or GPU nodes), its devices in each slice send the bytes above to each other. Between
slices only the data that one slice needs from the others is sent, divided among the devices of the slice. The TPU
compiler splits such a collective itself. It expresses the part between slices as a `send` to Megascale, the runtime
that connects TPU slices.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from janus_jax.aot.topologies import Topology

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
# A single closing brace. Attributes of a kernel span several lines, one of which begins with two braces.
_END = re.compile(r"^\}(?!\})")
_OPERATION = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation|called_computations)=\{?%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LOOP_BOUND = re.compile(r"= s32\[\][^ ]* constant\((\d+)\)")
_IOTA_GROUPS = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
# Matches mesh axes with sizes, the order of the devices, and the axes or sub-axes of a group.
_MESH_GROUPS = re.compile(
    r"replica_groups=(?:\w+ = )?mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? *\{([^}]*)\}"
)
_AXIS = re.compile(r"'([^']+)'(?:=(\d+)|:\((\d+)\)(\d+))?")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")
# The TPU compiler splits a collective into pieces that overlap with products, and repeats the operation in each piece.
_REPEATED = re.compile(r"%async-collective-done|calls=%?async_collective_fusion")
_SEND = re.compile(r'= \((\S+), .*\) send\(.*_xla_megascale_target="?\{([^}]*)\}.*_xla_megascale_transfer_type="(\w+)"')
_BITS = {"pred": 8, "s4": 4, "u4": 4}

TripCounts = tuple[int | None, ...]


@dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
      kind: Name of the HLO operation.
      size: Bytes of the whole arrays that are gathered, reduced or sent.
      dtype: dtype of the largest of these arrays.
      axes: Mesh axes that the groups extend along.
      group_size: Devices in one group.
      num_slices: Slices that a group spans.
      torus_dimensions: Dimensions of the torus that a group extends along.
      trip_counts: Iterations of the enclosing loops, outermost first; None for a loop with a data-dependent number.
    """

    kind: str
    size: int
    dtype: str
    axes: tuple[str, ...]
    group_size: int
    num_slices: int
    torus_dimensions: int
    trip_counts: TripCounts = ()

    @property
    def count(self) -> int:
        """Executions per step. A loop with a data-dependent number of iterations counts as one iteration."""
        return math.prod(trips for trips in self.trip_counts if trips is not None)

    @property
    def ici_bytes(self) -> float:
        """Bytes that a device sends within its slice per execution."""
        local = self.group_size // self.num_slices
        if self.kind == "collective-permute":
            return self.size if self.num_slices == 1 else 0.0
        if "all-to-all" in self.kind:
            return self.size * (local - 1) / self.group_size
        return self._passes * self.size * (local - 1) / local

    @property
    def dcn_bytes(self) -> float:
        """Bytes that a device sends to other slices per execution."""
        if self.num_slices == 1:
            return 0.0
        local = self.group_size // self.num_slices
        if self.kind == "collective-permute":
            return float(self.size)
        if "all-to-all" in self.kind:
            return self.size * (self.group_size - local) / self.group_size
        return self._passes * self.size * (self.num_slices - 1) / self.num_slices / local

    @property
    def _passes(self) -> int:
        return 2 if self.kind == "all-reduce" else 1


def read_collectives(hlo: str, mesh: Mesh, topology: Topology) -> list[Collective]:
    """Returns the collectives of a program in program order, without those in groups of one device.

    Args:
      hlo: Text of the compiled program.
      mesh: Mesh that the program is compiled for.
      topology: Topology that holds the devices of the mesh.
    """
    computations = _split_computations(hlo)
    entry = next(name for name, lines in computations.items() if lines and lines[0].startswith("ENTRY"))
    return list(_Reader(computations, mesh, topology).collectives(entry, ()))


def _split_computations(hlo: str) -> dict[str, list[str]]:
    """Returns the lines of each computation by name."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations[header[2]] = ["ENTRY"] if header[1] else []
        elif _END.match(line):
            lines = []
        else:
            lines.append(line)
    return computations


class _Reader:
    """Collects the collectives of an HLO program: walks its computations, starting at the entry."""

    def __init__(self, computations: dict[str, list[str]], mesh: Mesh, topology: Topology) -> None:
        self._computations, self._mesh = computations, mesh
        self._devices = list(mesh.devices.flat)
        self._slices = topology.slice_indices(self._devices)

    def collectives(self, name: str, trip_counts: TripCounts) -> Iterator[Collective]:
        """Yields the collectives of a computation and of those that it calls."""
        for line in self._computations.get(name, ()):
            if operation := _OPERATION.search(line):
                group = _first_group(line, len(self._devices))
                if len(group) > 1:
                    # The TPU compiler writes a reduce-scatter as an all-reduce from which each device keeps its part.
                    scatters = operation[2] == "all-reduce" and name.startswith("all-reduce-scatter")
                    yield self._collective(operation, group, trip_counts, scatters=scatters)
            elif send := _SEND.search(line):
                yield self._send(send, trip_counts)
            elif loop := _WHILE.search(line):
                yield from self.collectives(loop[2], (*trip_counts, self._trip_count(line, loop[1])))
            elif not _REPEATED.search(line):
                branches = ",".join(_BRANCHES.findall(line)).split(",")
                for called in (*_CALLED.findall(line), *(branch.strip().lstrip("%") for branch in branches)):
                    yield from self.collectives(called, trip_counts)

    def _trip_count(self, line: str, condition: str) -> int | None:
        if known := _TRIP_COUNT.search(line):
            return int(known[1])
        # Loops of jax count from 0 to a constant, unless the number of iterations depends on the data.
        bounds = _LOOP_BOUND.findall("\n".join(self._computations.get(condition, ())))
        return max(map(int, bounds), default=0) or None

    def _collective(
        self, operation: re.Match[str], group: list[int], trip_counts: TripCounts, *, scatters: bool
    ) -> Collective:
        kind, is_start = operation[2], bool(operation[3])
        arrays = [(dtype, _array_bytes(dtype, shape)) for dtype, shape in _ARRAY.findall(operation[1])]
        if kind == "collective-permute":
            arrays = arrays[:1]
        elif is_start and kind != "all-reduce":
            # The result of a start operation lists inputs, then outputs.
            arrays = arrays[len(arrays) // 2 :]
        size = sum(array_size for _, array_size in arrays)
        if kind == "reduce-scatter":
            size *= len(group)
        coordinates = np.array(np.unravel_index(group, self._mesh.devices.shape))
        torus = [getattr(self._devices[index], "coords", None) or (0,) for index in group]
        return Collective(
            kind="reduce-scatter" if scatters else kind,
            size=size,
            dtype=max(arrays, key=lambda array: array[1], default=("", 0))[0],
            axes=tuple(
                axis for axis, along in zip(self._mesh.axis_names, coordinates, strict=True) if len(set(along)) > 1
            ),
            group_size=len(group),
            num_slices=len({self._slices[index] for index in group}),
            torus_dimensions=sum(len(set(along)) > 1 for along in zip(*torus, strict=True)),
            trip_counts=trip_counts,
        )

    def _send(self, send: re.Match[str], trip_counts: TripCounts) -> Collective:
        """Returns the `Collective` of a Megascale send, which transfers data to the same devices of other slices."""
        dtype, shape = _ARRAY.findall(send[1])[0]
        kind, num_slices = "collective-permute", 2
        if send[3] != "ONE_TO_ONE":
            kind = send[3].lower().replace("_", "-")
            # Slices are listed, as in {1,2}, or given as a range, as in {1:4}.
            ranges = [[int(end) for end in ends.split(":")] for ends in send[2].split(",")]
            num_slices = sum(ends[-1] - ends[0] + 1 for ends in ranges)
        slices = np.array(self._slices).reshape(self._mesh.devices.shape)
        return Collective(
            kind=kind,
            size=_array_bytes(dtype, shape) * (num_slices if kind == "all-gather" else 1),
            dtype=dtype,
            axes=tuple(name for axis, name in enumerate(self._mesh.axis_names) if np.diff(slices, axis=axis).any()),
            group_size=num_slices,
            num_slices=num_slices,
            torus_dimensions=0,
            trip_counts=trip_counts,
        )


def _array_bytes(dtype: str, shape: str) -> int:
    bits = _BITS.get(dtype) or int((re.search(r"\d+", dtype) or ["0"])[0])
    return math.prod(_integers(shape)) * bits // 8


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _first_group(line: str, num_devices: int) -> list[int]:
    """Returns the devices of an operation's first group, as indices into the flattened mesh."""
    if iota := _IOTA_GROUPS.search(line):
        indices = np.arange(num_devices).reshape(_integers(iota[2]))
        if iota[3]:
            indices = indices.transpose(_integers(iota[3]))
        return [int(index) for index in indices.reshape(_integers(iota[1]))[0]]
    if on_mesh := _MESH_GROUPS.search(line):
        return _first_mesh_group(*on_mesh.groups())
    if listed := _LISTED_GROUPS.search(line):
        return _integers(listed[1])
    if pairs := _PAIRS.search(line):
        ends = [int(index) for index in re.findall(r"\d+", pairs[1])]
        return next(([one, other] for one, other in zip(ends[::2], ends[1::2], strict=True) if one != other), [0])
    return list(range(num_devices))


def _first_mesh_group(mesh_axes: str, order: str | None, permutation: str | None, group_axes: str) -> list[int]:
    """Returns the devices of the first group along axes, or sub-axes, of a mesh that is defined in the HLO text."""
    mesh = {name: int(size) for name, size, _, _ in _AXIS.findall(mesh_axes)}
    requested = [(name, pre, size) for name, _, pre, size in _AXIS.findall(group_axes)]
    # Divides the axes of the mesh at the boundaries of the group's sub-axes. `grouped` holds the indices of the
    # divided axes that the group extends along.
    sizes: list[int] = []
    grouped = set()
    for name, whole in mesh.items():
        sub_axes = [(int(pre or 1), int(size or whole)) for other, pre, size in requested if other == name]
        covered = 1
        for pre, size in sorted(sub_axes):
            if pre > covered:
                sizes.append(pre // covered)
            grouped.add(len(sizes))
            sizes.append(size)
            covered = pre * size
        if covered < whole:
            sizes.append(whole // covered)
    indices = np.arange(math.prod(mesh.values()))
    if order:
        indices = indices.reshape(_integers(order)).transpose(_integers(permutation) if permutation else None)
    first = tuple(slice(None) if part in grouped else 0 for part in range(len(sizes)))
    return [int(index) for index in indices.reshape(sizes)[first].flat]
