"""What training changes from step to step, and how it is born: sharded, each array where it stays."""

from collections.abc import Callable
from typing import Any, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Int

from janus_jax.sharding import LOGICAL_RULES
from janus_jax.training.param_paths import unbox

Params = Any
"""A tree of arrays, of boxes with logical names, or of shapes."""


class TrainState(flax.struct.PyTreeNode):
    """All that a checkpoint must hold of the model.

    Attributes:
      step: how many steps were taken.
      params: what is trained, in float32.
      frozen: what is not, in the dtype of the computation: no gradient, no moments, no float32 copy.
      opt_state: of the optimizer, for `params` alone.
      ema: the moving average of `params`, or None.
    """

    step: Int[Array, ""]
    params: Params
    frozen: Params
    opt_state: Any
    ema: Params | None = None

    def apply_gradients(
        self, gradients: Params, optimizer: optax.GradientTransformation, ema_decay: float | Array = 0.0
    ) -> Self:
        """The state one step on.

        Args:
          ema_decay: how much of the average stays; read only where there is an average.
        """
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        ema = None if self.ema is None else optax.incremental_update(params, self.ema, 1 - ema_decay)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, ema=ema)


def create_state(
    params: Params,
    frozen: Params,
    optimizer: optax.GradientTransformation,
    *,
    frozen_dtype: str = "bfloat16",
    ema: bool = False,
) -> TrainState:
    """The state before the first step; under jit, and with or without boxes around the parameters.

    Args:
      optimizer: anything with an `init`.
      frozen_dtype: of the frozen part. On a CPU float32 is about ten times as fast as bfloat16.
      ema: whether an average is kept; it begins at the parameters.
    """
    params = _cast(params, "float32")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=_cast(frozen, frozen_dtype),
        opt_state=optimizer.init(unbox(params)),
        # Copies: a step gives its arrays away, and none can be given twice.
        ema=jax.tree.map(jnp.copy, params) if ema else None,
    )


def abstract_state(make: Callable[..., TrainState], mesh: Mesh | None, *arguments: Any) -> TrainState:
    """Shape, dtype and sharding of every array of `make(*arguments)`, with nothing computed.

    The optimizer's arrays lie where their parameters do. This is what `Checkpoints.restore` fills, too.

    Args:
      make: gives a `create_state` of boxed parameters.
      mesh: None for the default device.
    """
    boxed: TrainState = jax.eval_shape(make, *arguments)
    if mesh is None:
        here = SingleDeviceSharding(jnp.zeros(()).devices().pop())
        return jax.tree.map(lambda leaf: _placed(leaf, here), unbox(boxed))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(tree: Any) -> Any:
        shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(tree), mesh, LOGICAL_RULES)
        return jax.tree.map(_placed, unbox(tree), shardings)

    params = place(boxed.params)
    of_params = dict(jax.tree_util.tree_flatten_with_path(params)[0])

    def beside(path: tuple[Any, ...], leaf: Any) -> Any:
        # A moment's path ends with its parameter's.
        for start in range(len(path)):
            param = of_params.get(path[start:])
            if param is not None and param.shape == leaf.shape:
                return _placed(leaf, param.sharding)
        return _placed(leaf, everywhere)

    return boxed.replace(
        step=_placed(boxed.step, everywhere),
        params=params,
        frozen=place(boxed.frozen),
        opt_state=jax.tree_util.tree_map_with_path(beside, boxed.opt_state),
        ema=None if boxed.ema is None else place(boxed.ema),
    )


def init_sharded_state(make: Callable[..., TrainState], abstract: TrainState, *arguments: Any) -> TrainState:
    """`make(*arguments)`, every array made in its place: no host and no device ever holds more than its share."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda *values: unbox(make(*values)), out_shardings=shardings)(*arguments)


def state_from_params(
    params: Params, frozen: Params, optimizer: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """The state before the first step of parameters that were read from files.

    Args:
      params, frozen: arrays, best in their places already: those that are become the state's own, so that a step that
        takes the state takes them; others are moved.
      abstract: see `abstract_state`.
    """
    params, frozen = (
        jax.tree.map(lambda array, to: jax.device_put(array.astype(to.dtype, copy=False), to.sharding), tree, places)
        for tree, places in ((params, abstract.params), (frozen, abstract.frozen))
    )

    def rest(params: Params) -> tuple[Any, ...]:
        ema = None if abstract.ema is None else jax.tree.map(jnp.copy, params)
        return jnp.zeros((), jnp.int32), optimizer.init(params), ema

    shardings = jax.tree.map(lambda leaf: leaf.sharding, (abstract.step, abstract.opt_state, abstract.ema))
    step, opt_state, ema = jax.jit(rest, out_shardings=shardings)(params)
    return TrainState(step, params, frozen, opt_state, ema)


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _cast(tree: Params, dtype: str) -> Params:
    def cast(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    # A box is a node of the tree: what is in it is cast, its names stay.
    return jax.tree.map(cast, tree)
