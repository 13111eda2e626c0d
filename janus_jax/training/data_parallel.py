"""Data parallelism: the batch is sharded over the devices, and the state is replicated."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from janus_jax.errors import JanusError
from janus_jax.sharding import batch_sharding, num_data_shards, use_mesh


class DataParallel:
    """Compiles functions and shards arrays for data-parallel training.

    Args:
      mesh: Mesh over whose axes `data` and `fsdp` the batch is sharded. None uses one device.
      batch_size: Global batch size.

    Raises:
      JanusError: The batch size is not a multiple of the number of devices that share the batch.
    """

    def __init__(self, mesh: Mesh | None, batch_size: int) -> None:
        self.mesh, self.batch_size = mesh, batch_size
        if batch_size % num_data_shards(mesh):
            raise JanusError(
                f"config.batch_size is {batch_size}; it must be a multiple of {num_data_shards(mesh)}, the number of "
                f"devices that share it."
            )
        self._replicated: Any = SingleDeviceSharding(jax.devices()[0])
        self._batch: Any = self._replicated
        if mesh is not None:
            self._replicated, self._batch = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)

    def jit(self, function: Callable[..., Any], *, donate_argnums: int | tuple[int, ...] = ()) -> Callable[..., Any]:
        """Returns the compiled function; its outputs are replicated."""
        compiled = jax.jit(function, donate_argnums=donate_argnums, out_shardings=self._replicated)

        def call(*args: Any) -> Any:
            with use_mesh(self.mesh):
                return compiled(*args)

        return call

    def abstract(self, init: Callable[[], Any]) -> Any:
        """Returns the shapes, dtypes and shardings of the result of `init`, without running it."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._replicated), jax.eval_shape(init)
        )

    def replicate(self, tree: Any) -> Any:
        """Returns a tree of host arrays, copied to all devices."""
        return jax.tree.map(
            lambda array: jax.make_array_from_callback(array.shape, self._replicated, np.asarray(array).__getitem__),
            tree,
        )

    def local_batch(self, examples: np.ndarray) -> jax.Array:
        """Returns a sharded batch. Each process passes its own examples."""
        return jax.make_array_from_process_local_data(self._batch, examples)

    def global_batch(self, examples: np.ndarray) -> jax.Array:
        """Returns a sharded batch. Every process passes the examples of all processes."""
        return jax.make_array_from_callback(examples.shape, self._batch, examples.__getitem__)
