"""Checks that the replicas of the state agree, because a faulty device can compute wrong values without an error."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, UInt32

from janus_jax.coordination import combine
from janus_jax.errors import Stalled
from janus_jax.training.callbacks.base import Callback, TrainingRun

_MAX_NAMES = 4


class ReplicaCheck(Callback):
    """Compares checksums of the state between the devices that hold the same values.

    Every leaf of the state is replicated along the mesh axes that do not shard it: all leaves along `data`, and small
    parameters along the other axes. Checkpoints are saved after a check only, so the next start resumes from a state
    whose replicas agreed.

    Args:
      abstract_state: Shapes, dtypes and shardings of the state.
      mesh: Mesh that holds the state; None for a single device, which has no replicas.
      interval: Steps between two checks; 0 disables the checks.
    """

    def __init__(self, abstract_state: Any, mesh: Mesh | None, interval: int) -> None:
        self._mesh, self._interval, self._checked = mesh, interval, -1
        self._checksums: Callable[[Any], Array] | None = None
        if mesh is not None and mesh.size > 1 and interval:
            self._checksums, self._axes = make_checksums(abstract_state, mesh)

    def after_step(self, run: TrainingRun) -> None:
        """Checks at each interval.

        Raises:
          Stalled: Replicas disagree. The message names their devices.
        """
        if self._interval and run.step % self._interval == 0:
            self.before_save(run)

    def before_save(self, run: TrainingRun) -> None:
        """Checks before each save; raises the same error."""
        if self._checksums is None or self._mesh is None or self._checked == run.step:
            return
        self._checked = run.step
        shards = self._checksums(run.state).addressable_shards
        own = {str(shard.index[0].start or 0): np.asarray(shard.data)[0].tolist() for shard in shards}
        if wrong := combine("replicas", own, self._disagreeing):
            devices = [self._mesh.devices.flat[row] for row in wrong[:_MAX_NAMES]]
            names = ", ".join(f"{device} of process {device.process_index}" for device in devices)
            more = f" and {len(wrong) - _MAX_NAMES} more" if len(wrong) > _MAX_NAMES else ""
            raise Stalled(
                f"At step {run.step} the parameters on {names}{more} differ from their replicas, so a device computes "
                f"wrong values; replace its machine and repeat the command, which resumes from the checkpoint before."
            )

    def _disagreeing(self, processes: Sequence[Mapping[str, Sequence[int]]]) -> list[int]:
        assert self._mesh is not None
        rows = {int(row): sums for one in processes for row, sums in one.items()}
        return disagreeing(rows, self._axes, self._mesh)


def make_checksums(
    abstract_state: Any, mesh: Mesh
) -> tuple[Callable[[Any], UInt32[Array, "devices groups"]], Sequence[tuple[str, ...]]]:
    """Returns a compiled function from a state to checksums, and the mesh axes that shard each of their columns.

    A row of the checksums belongs to a device of `mesh.devices.flat`. A column is for the leaves that the same axes
    shard.
    """
    leaves, tree = jax.tree.flatten(abstract_state)
    specs = [leaf.sharding.spec for leaf in leaves]
    columns = [tuple(name for name in mesh.axis_names if name in _names(spec)) for spec in specs]
    axes = sorted(set(columns))

    def local(state: Any) -> Array:
        sums = [jnp.uint32(0)] * len(axes)
        for number, (leaf, column) in enumerate(zip(jax.tree.leaves(state), columns, strict=True)):
            place = axes.index(column)
            # An odd factor for each leaf and element, so that exchanged values change the sum.
            sums[place] += _checksum(leaf) * jnp.uint32(2 * number + 1)
        return jnp.stack(sums)[None]

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(jax.tree.unflatten(tree, specs),),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,
    )
    return jax.jit(mapped), axes


def disagreeing(rows: Mapping[int, Sequence[int]], axes: Sequence[tuple[str, ...]], mesh: Mesh) -> list[int]:
    """Returns the devices whose checksums differ from those of most of their replicas, as indices of the mesh.

    If no checksum is in the majority, all replicas are returned.
    """
    wrong = set()
    for column, names in enumerate(axes):
        groups: dict[tuple[int, ...], dict[int, int]] = {}
        for row, sums in rows.items():
            place = np.unravel_index(row, mesh.devices.shape)
            shard = tuple(int(place[mesh.axis_names.index(name)]) for name in names)
            groups.setdefault(shard, {})[row] = sums[column]
        for group in groups.values():
            ((most, count), *_) = Counter(group.values()).most_common(1)
            is_majority = 2 * count > len(group)
            wrong |= {row for row, checksum in group.items() if checksum != most or not is_majority}
    return sorted(wrong)


def _checksum(leaf: Array) -> UInt32[Array, ""]:
    size = leaf.dtype.itemsize
    if leaf.dtype == jnp.bool_:
        bits = leaf.astype(jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * min(size, 4)}")).astype(jnp.uint32)
    flat = bits.reshape(-1)
    factors = 2 * jax.lax.iota(jnp.uint32, flat.size) + 1
    return jnp.sum(flat * factors, dtype=jnp.uint32)


def _names(spec: PartitionSpec) -> set[str]:
    names: set[str] = set()
    for entry in spec:
        if entry is not None:
            names |= {entry} if isinstance(entry, str) else set(entry)
    return names
