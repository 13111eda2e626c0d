"""Device mesh, the mapping from logical axes to mesh axes, and shardings of parameters and batches.

Mesh axes:
  data    splits the batch; the parameters are replicated.
  fsdp    splits the batch and the parameters; the parameters are gathered layer by layer (ZeRO-3, arXiv 1910.02054).
  tensor  splits heads, hidden units and vocabulary (Megatron, arXiv 1909.08053).

`data` and `fsdp` are called data axes. The batch has one data shard per position along them; devices that differ
only in `tensor` hold the same shard.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from janus_jax.config import JanusConfig, ModelConfig
from janus_jax.errors import JanusError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axis. A mesh axis splits at most one axis of an array: the first axis that maps to it.
LOGICAL_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    # Activations.
    ("batch", ("data", "fsdp")),
    ("length", None),
    ("activation_embed", None),
    # Parameters, and activations with the same axes.
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("head_dim", None),
    ("norm", None),
    ("layers", None),
    # The image tokenizer is small (72 M parameters) and therefore replicated.
    ("conv_in", None),
    ("conv_out", None),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of `devices`, by default of all.

    Args:
      data, fsdp, tensor: Size of each axis. At most one may be -1; it takes the remaining devices.

    Raises:
      JanusError: The product of the sizes is not the number of devices, or neither `data` nor `fsdp` is a multiple of
        the number of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 for size in sizes if size != -1):
        raise JanusError(f"Mesh sizes must be positive, with at most one -1; found {tuple(sizes)}.")
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise JanusError(
            f"A mesh of {' x '.join(map(str, sizes))} needs {math.prod(sizes)} devices; there are {len(devices)}."
        )
    slices: dict[int | None, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", None), []).append(device)
    # The network between slices is slow. Along data only gradients cross it, once per step; along fsdp parameters would
    # cross it in every layer. So data spans the slices if possible.
    across = next((axis for axis in (0, 1) if sizes[axis] % len(slices) == 0), None)
    if across is None:
        raise JanusError(
            f"A mesh of {' x '.join(map(str, sizes))} spans {len(slices)} slices; its data or fsdp axis must be a "
            f"multiple of {len(slices)}."
        )
    sizes[across] //= len(slices)
    arrays = [_arrange_slice(sizes, group) for _, group in sorted(slices.items())]
    # Linen's constraints need Auto axes; jax's default is Explicit.
    return Mesh(np.concatenate(arrays, axis=across), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _arrange_slice(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Arranges the devices of one slice, or of all GPU nodes, so that neighbors in the mesh are near each other.

    Devices along `tensor` must belong to one process, because they share sequences and every process loads its own.
    """
    # Lets two mesh axes share a side of the torus, because `tensor` is usually shorter than a side.
    arranged = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    tensor = sizes[MESH_AXES.index("tensor")]
    if all(len({device.process_index for device in group}) == 1 for group in arranged.reshape(-1, tensor)):
        return arranged
    # A TPU host is a square of chips, so a line of chips can cross hosts. Arranges the devices host by host.
    hosts: dict[int, list[Any]] = {}
    for device in sorted(devices, key=lambda device: (getattr(device, "coords", ()), device.id)):
        hosts.setdefault(device.process_index, []).append(device)
    if any(len(host) % tensor for host in hosts.values()):
        return arranged
    return np.array([device for host in hosts.values() for device in host]).reshape(sizes)


def check_mesh(config: ModelConfig, mesh: Mesh) -> None:
    """Checks that the mesh divides the sharded axes of the parameters, and that `tensor` stays within a process.

    Raises:
      JanusError: A check fails.
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
        # The hidden widths of the encoder's blocks are multiples of its width.
        divisible["tensor"]["gen_encoder.width"] = divisible["fsdp"]["gen_encoder.width"] = config.gen_encoder.width
    for axis, numbers in divisible.items():
        for name, number in numbers.items():
            if number % mesh.shape[axis]:
                raise JanusError(
                    f"The mesh's {axis} axis of {mesh.shape[axis]} does not divide {name} = {number}; "
                    f"choose a divisor of {math.gcd(*numbers.values())}."
                )
    processes = [device.process_index for device in mesh.devices.flat]
    for group in mesh.devices.reshape(-1, mesh.shape["tensor"]):
        if len({device.process_index for device in group}) > 1:
            raise JanusError(
                f"The mesh's tensor axis of {mesh.shape['tensor']} spans several processes, but each process loads its "
                f"own sequences; choose a divisor of {processes.count(processes[0])}, the devices of one process."
            )


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None) -> Iterator[None]:
    """While the context is active, logical axes are mapped to `mesh`. None stands for a single device."""
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_RULES):
        yield


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Returns the sharding of every parameter.

    Args:
      boxed: Parameters with logical axis names, from `models.factory.abstract_params`.
    """
    specs = nn.get_partition_spec(boxed)
    return nn.logical_to_mesh_sharding(specs, mesh, LOGICAL_RULES)


def to_host(array: jax.Array) -> np.ndarray:
    """Copies a whole array to the host. If the array is sharded over several processes, all of them must call this."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    gathered: np.ndarray = multihost_utils.process_allgather(array, tiled=True)
    return gathered


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the leading axis of an array over the data axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def num_data_shards(mesh: Mesh | AbstractMesh | None) -> int:
    """Returns the number of data shards into which a mesh splits a batch."""
    return 1 if mesh is None or mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def shard_leading_axis(x: jax.Array) -> jax.Array:
    """Shards an array with one element per data shard along its leading axis, over the data axes of the current mesh.

    Returns the array unchanged outside `use_mesh`.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    # Leaves the sharding of the other axes to the compiler.
    spec = PartitionSpec(("data", "fsdp"), *(PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)


def sum_over_shards(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Sums the result of `shard_leading_axis` over its leading axis. The devices communicate in `dtype`."""
    if x.shape[0] == 1:
        return x[0]
    # `jnp.sum` would accumulate and communicate in a wider dtype.
    return jax.lax.reduce(x.astype(dtype), np.zeros((), dtype), jax.lax.add, (0,))
