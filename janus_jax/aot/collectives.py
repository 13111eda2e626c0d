"""What a compiled program moves between devices, read from its text (HLO): how often, how much, over which network.

An operation in a loop counts as often as the loop turns, or once where that hangs on the data. A group of devices is
told by the mesh axes that it goes along. Of what a device sends, by the algorithms that move least (rings):

    all-gather, reduce-scatter   P (g - 1) / g       of P bytes whole, among g devices
    all-reduce                   2 P (g - 1) / g
    all-to-all                   P (g - 1) / g
    collective-permute           P

A group on several islands (slices, nodes) moves P among the devices of each, and between them only what all of an
island's devices together need of the others, each its share of it. A TPU's compiler splits such an operation by itself
and writes what goes between slices as a device's own send to the runtime (Megascale), which does the rest.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import Mesh

from janus_jax.aot.topologies import Topology

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
# A kernel's attributes go over several lines, one of which begins with more braces than one.
_END = re.compile(r"^\}(?!\})")
_OPERATION = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation|called_computations)=\{?%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r"= s32\[\][^ ]* constant\((\d+)\)")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
# Its axes and their sizes, the order of the devices, and the axes of a group, some of them only parts of an axis.
_ON_MESH = re.compile(
    r"replica_groups=(?:\w+ = )?mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? *\{([^}]*)\}"
)
_AXIS = re.compile(r"'([^']+)'(?:=(\d+)|:\((\d+)\)(\d+))?")
# A TPU's compiler cuts a collective in pieces that run beside products; each piece shows it anew.
_CONTINUED = re.compile(r"%async-collective-done|calls=%?async_collective_fusion")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_SENT = re.compile(r'= \((\S+), .*\) send\(.*_xla_megascale_target="?\{([^}]*)\}.*_xla_megascale_transfer_type="(\w+)"')
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")
_BITS = {"pred": 8, "s4": 4, "u4": 4}


@dataclass(frozen=True)
class Collective:
    """One operation of a program.

    Attributes:
      kind: as HLO calls it.
      payload: bytes of the whole array, gathered, reduced or sent.
      dtype: of its largest array.
      axes: of the mesh, that its groups go along.
      group: devices of one.
      islands: that a group lies on.
      dimensions: of a torus that a group extends along.
      loops: turns of the loops it is in, the outermost first; None of one that turns as often as the data says.
    """

    kind: str
    payload: int
    dtype: str
    axes: tuple[str, ...]
    group: int
    islands: int
    dimensions: int
    loops: tuple[int | None, ...] = ()

    @property
    def times(self) -> int:
        """How often a step runs it, at least."""
        return math.prod(turns for turns in self.loops if turns is not None)

    @property
    def near(self) -> float:
        """Bytes that a device sends within its island, each time."""
        local = self.group // self.islands
        if self.kind == "collective-permute":
            return self.payload if self.islands == 1 else 0.0
        if "all-to-all" in self.kind:
            return self.payload * (local - 1) / self.group
        return self._passes * self.payload * (local - 1) / local

    @property
    def far(self) -> float:
        """Bytes that a device sends to other islands, each time."""
        if self.islands == 1:
            return 0.0
        local = self.group // self.islands
        if self.kind == "collective-permute":
            return float(self.payload)
        if "all-to-all" in self.kind:
            return self.payload * (self.group - local) / self.group
        return self._passes * self.payload * (self.islands - 1) / self.islands / local

    @property
    def _passes(self) -> int:
        return 2 if self.kind == "all-reduce" else 1


def read_collectives(text: str, mesh: Mesh, topology: Topology) -> list[Collective]:
    """All of a program's that have more than one device in a group, in the order of the text."""
    computations = _computations(text)
    devices = list(mesh.devices.flat)
    islands = _islands(devices, topology)

    def within(name: str, loops: tuple[int | None, ...]) -> Iterator[Collective]:
        for line in computations.get(name, ()):
            if found := _OPERATION.search(line):
                group = _group(line, len(devices))
                if len(group) > 1:
                    yield replace(_described(found, line, name, group, mesh, devices, islands), loops=loops)
            elif sent := _SENT.search(line):
                yield replace(_described_send(sent, mesh, islands), loops=loops)
            elif turning := _WHILE.search(line):
                turns = _turns(line, computations.get(turning[1], ()))
                yield from within(turning[2], (*loops, turns))
            elif not _CONTINUED.search(line):
                for called in _called(line):
                    yield from within(called, loops)

    entry = next(name for name, lines in computations.items() if lines and lines[0].startswith("ENTRY"))
    return list(within(entry, ()))


def _computations(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = found[header[2]] = ["ENTRY"] if header[1] else []
        elif _END.match(line):
            lines = []
        else:
            lines.append(line)
    return found


def _called(line: str) -> list[str]:
    names = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        names += [name.strip().lstrip("%") for name in branches.split(",")]
    return names


def _turns(line: str, condition: Sequence[str]) -> int | None:
    if known := _TRIPS.search(line):
        return int(known[1])
    # jax's loops count from 0 to a constant, but where ids are sampled, or heads read the chunks that hold a place.
    bounds = [int(bound) for bound in _BOUND.findall("\n".join(condition))]
    return max(bounds, default=0) or None


def _described(
    found: re.Match[str],
    line: str,
    computation: str,
    group: list[int],
    mesh: Mesh,
    devices: Sequence[jax.Device],
    islands: Sequence[int],
) -> Collective:
    result, kind, starts = found[1], found[2], bool(found[3])
    arrays = [(dtype, _bytes(dtype, sides)) for dtype, sides in _ARRAY.findall(result)]
    if kind == "collective-permute":
        arrays = arrays[:1]
    elif starts and kind != "all-reduce":
        # What goes in, and then what comes out.
        arrays = arrays[len(arrays) // 2 :]
    payload = sum(size for _, size in arrays)
    if kind == "reduce-scatter":
        payload *= len(group)
    elif kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        # How a TPU's compiler writes it: the whole, of which a device keeps its part.
        kind = "reduce-scatter"
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    axes = tuple(name for name, along in zip(mesh.axis_names, places, strict=True) if len(set(along)) > 1)
    coordinates = [getattr(devices[number], "coords", None) or (0,) for number in group]
    return Collective(
        kind=kind,
        payload=payload,
        dtype=max(arrays, key=lambda array: array[1], default=("", 0))[0],
        axes=axes,
        group=len(group),
        islands=len({islands[number] for number in group}),
        dimensions=sum(len(set(along)) > 1 for along in zip(*coordinates, strict=True)),
    )


def _described_send(sent: re.Match[str], mesh: Mesh, islands: Sequence[int]) -> Collective:
    """Of what a device gives to the runtime, for the devices at its place on other slices."""
    (dtype, sides), among = _ARRAY.findall(sent[1])[0], sent[2]
    kind, slices = "collective-permute", 2
    if sent[3] != "ONE_TO_ONE":
        kind = sent[3].lower().replace("_", "-")
        # As in {1,2} or {1:4}.
        ranges = [[int(end) for end in ends.split(":")] for ends in among.split(",")]
        slices = sum(ends[-1] - ends[0] + 1 for ends in ranges)
    lie = np.array(islands).reshape(mesh.devices.shape)
    return Collective(
        kind=kind,
        payload=_bytes(dtype, sides) * (slices if kind == "all-gather" else 1),
        dtype=dtype,
        axes=tuple(name for axis, name in enumerate(mesh.axis_names) if np.diff(lie, axis=axis).any()),
        group=slices,
        islands=slices,
        dimensions=0,
    )


def _bytes(dtype: str, sides: str) -> int:
    bits = _BITS.get(dtype) or int((re.search(r"\d+", dtype) or ["0"])[0])
    return math.prod(int(side) for side in sides.split(",") if side) * bits // 8


def _group(line: str, count: int) -> list[int]:
    """The first group of devices."""
    if iota := _IOTA.search(line):
        shape, sides = ([int(side) for side in text.split(",")] for text in (iota[1], iota[2]))
        numbers = np.arange(count).reshape(sides)
        if iota[3]:
            numbers = numbers.transpose([int(axis) for axis in iota[3].split(",")])
        return [int(number) for number in numbers.reshape(shape)[0]]
    if on_mesh := _ON_MESH.search(line):
        return _first_group(*on_mesh.groups())
    if listed := _LISTED.search(line):
        return [int(number) for number in listed[1].split(",") if number]
    if pairs := _PAIRS.search(line):
        ends = [int(number) for number in re.findall(r"\d+", pairs[1])]
        return next(([one, other] for one, other in zip(ends[::2], ends[1::2], strict=True) if one != other), [0])
    return list(range(count))


def _first_group(sizes: str, order: str | None, transposed: str | None, axes: str) -> list[int]:
    """Of groups along axes of the program's own mesh."""
    mesh = {name: int(size) for name, size, _, _ in _AXIS.findall(sizes)}
    parts: list[tuple[str, int]] = []
    grouped = set()
    asked = [(name, pre, size) for name, _, pre, size in _AXIS.findall(axes)]
    for name, whole in mesh.items():
        pieces = [(int(pre or 1), int(size or whole)) for other, pre, size in asked if other == name]
        at = 1
        for pre, size in sorted(pieces):
            if pre > at:
                parts.append((name, pre // at))
            grouped.add(len(parts))
            parts.append((name, size))
            at = pre * size
        if at < whole:
            parts.append((name, whole // at))
    numbers = np.arange(math.prod(mesh.values()))
    if order:
        numbers = numbers.reshape([int(side) for side in order.split(",")])
        numbers = numbers.transpose([int(axis) for axis in transposed.split(",")] if transposed else None)
    numbers = numbers.reshape([size for _, size in parts])
    return [int(n) for n in numbers[tuple(slice(None) if i in grouped else 0 for i in range(len(parts)))].flat]


def _islands(devices: Sequence[jax.Device], topology: Topology) -> list[int]:
    if topology.chip.platform == "tpu":
        return [topology.island(0, device) for device in devices]
    ordered = {device: number for number, device in enumerate(sorted(devices, key=lambda device: device.id))}
    return [topology.island(ordered[device], device) for device in devices]
