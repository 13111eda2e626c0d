"""The mesh, the one table that says which logical axis lies on which mesh axis, and arrays born in place.

Mesh axes:
  data    rows of the batch; parameters are repeated.
  fsdp    rows of the batch too; parameters are split, and gathered layer by layer (ZeRO-3, arXiv 1910.02054).
  tensor  heads, hidden units and vocabulary (Megatron, arXiv 1909.08053).
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from janus_jax.config import JanusConfig, ModelConfig
from janus_jax.errors import JanusError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axis. A mesh axis is used once per array: the first logical axis that asks for it gets it.
LOGICAL_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    # Activations.
    ("batch", ("data", "fsdp")),
    ("length", None),
    ("activation_embed", None),
    # Parameters, and the activations that they make.
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("head_dim", None),
    ("norm", None),
    ("layers", None),
    # The image tokenizer is small (72 M parameters): repeated everywhere.
    ("conv_in", None),
    ("conv_out", None),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (or the given ones).

    Args:
      data, fsdp, tensor: size of each axis; at most one may be -1, which takes the devices that are left.

    Raises:
      JanusError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 for size in sizes if size != -1):
        raise JanusError(f"A mesh takes positive sizes and at most one -1; it was given {tuple(sizes)}.")
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise JanusError(
            f"A mesh of {' x '.join(map(str, sizes))} needs {math.prod(sizes)} devices; there are {len(devices)}."
        )
    slices: dict[int | None, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", None), []).append(device)
    over = _over_slices(sizes, len(slices))
    sizes[over] //= len(slices)
    placed = np.concatenate([_within_slice(sizes, those) for _, those in sorted(slices.items())], axis=over)
    # Linen's constraints want Auto axes; jax's own default is Explicit.
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _within_slice(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices of one slice, or of all nodes, so that those are near each other that send to each other.

    A process has rows of its own, so what lies along `tensor` has to be in one.
    """
    # A side of the torus may be cut between two axes: `tensor` is mostly shorter than any.
    placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    tensor = sizes[MESH_AXES.index("tensor")]
    if all(len({device.process_index for device in group}) == 1 for group in placed.reshape(-1, tensor)):
        return placed
    # It was laid along a line of chips, where a host of TPUs has a square: the squares, then, row by row.
    hosts: dict[int, list[Any]] = {}
    for device in sorted(devices, key=lambda device: (getattr(device, "coords", ()), device.id)):
        hosts.setdefault(device.process_index, []).append(device)
    if any(len(host) % tensor for host in hosts.values()):
        return placed
    return np.array([device for host in hosts.values() for device in host]).reshape(sizes)


def _over_slices(sizes: Sequence[int], slices: int) -> int:
    """The axis whose parts lie on different slices, between which the network is slow: gradients go over it once a
    step, where parameters split over it would be gathered from there in every layer.
    """
    for axis in (0, 1):
        if sizes[axis] % slices == 0:
            return axis
    raise JanusError(
        f"A mesh of {' x '.join(map(str, sizes))} lies on {slices} slices; its {MESH_AXES[0]} axis, or else its "
        f"{MESH_AXES[1]} axis, must be a multiple of {slices}."
    )


def check_mesh(config: ModelConfig, mesh: Mesh) -> None:
    """Refuses a mesh over which the model cannot be split evenly, or whose processes cannot have their own rows.

    Raises:
      JanusError: the sentence names the axis, the number and the divisors that would do.
    """
    llm, und = config.llm, config.und_encoder
    divisible = {
        "tensor": {
            "llm.num_kv_heads": llm.num_kv_heads,
            "llm.mlp_dim": llm.mlp_dim,
            "llm.vocab_size": llm.vocab_size,
            "llm.width": llm.width,
            "und_encoder.num_heads": und.num_heads,
            "und_encoder.mlp_dim": und.mlp_dim,
        },
        "fsdp": {"llm.width": llm.width, "und_encoder.width": und.width},
    }
    if isinstance(config, JanusConfig):
        divisible["tensor"]["gen_head_width"] = config.gen_head_width
        divisible["tensor"]["gen_encoder.codebook_size"] = config.gen_encoder.codebook_size
    else:
        # The hidden layers of its blocks, whose other axis is split too, are multiples of it.
        divisible["tensor"]["gen_encoder.width"] = divisible["fsdp"]["gen_encoder.width"] = config.gen_encoder.width
    for axis, numbers in divisible.items():
        for name, number in numbers.items():
            if number % mesh.shape[axis]:
                raise JanusError(
                    f"The mesh's {axis} axis of {mesh.shape[axis]} does not divide {name} = {number}; "
                    f"take a divisor of {math.gcd(*numbers.values())}."
                )
    processes = [device.process_index for device in mesh.devices.flat]
    for holders in mesh.devices.reshape(-1, mesh.shape["tensor"]):
        if len({device.process_index for device in holders}) > 1:
            raise JanusError(
                f"The mesh's tensor axis of {mesh.shape['tensor']} goes over several processes, each of which has rows "
                f"of its own; take a divisor of {processes.count(processes[0])}, the devices of one."
            )


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Within it, logical axis names mean places on this mesh; None leaves everything on one device."""
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_RULES):
        yield


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """The sharding of every parameter.

    Args:
      boxed: the tree with its logical names, as `models.family.abstract_params` gives it.
    """
    specs = nn.get_partition_spec(boxed)
    return nn.logical_to_mesh_sharding(specs, mesh, LOGICAL_RULES)


def to_host(array: jax.Array) -> np.ndarray:
    """All of an array; where each process holds a share of it, every one of them takes part."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    whole: np.ndarray = multihost_utils.process_allgather(array, tiled=True)
    return whole


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data axes, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def num_data_shards(mesh: Mesh | None) -> int:
    """The number that a batch's rows must be a multiple of."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def context_data_shards() -> int:
    """How many parts the mesh of the context cuts a batch's rows into."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def shard_leading_axis(x: jax.Array) -> jax.Array:
    """An array whose first axis has a part for each of `context_data_shards`, put where their rows are."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    # How the rest lies is the compiler's affair: as what it is made of does.
    spec = PartitionSpec(("data", "fsdp"), *(PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)


def sum_over_shards(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The sum over the first axis of what `shard_leading_axis` has put on the shards, sent in this dtype."""
    if x.shape[0] == 1:
        return x[0]
    # Not `sum`, which would widen it first.
    return jax.lax.reduce(x.astype(dtype), np.zeros((), dtype), jax.lax.add, (0,))
