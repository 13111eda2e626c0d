"""The train state and its sharded initialization."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Int, Key

from janus_jax.config import Dtype
from janus_jax.errors import JanusError
from janus_jax.models.backbone import Backbone, Params
from janus_jax.models.factory import abstract_params, init_params
from janus_jax.sharding import LOGICAL_RULES
from janus_jax.training.lora import Lora, init_adapters
from janus_jax.training.objectives import Objective
from janus_jax.training.param_paths import merge, partition, unbox
from janus_jax.training.rl.objective import REFERENCE


class TrainState(flax.struct.PyTreeNode):
    """Parameters and optimizer state.

    Attributes:
      step: Steps taken.
      params: Trained parameters, float32.
      frozen: Frozen parameters, in the dtype of the computation. They have no gradient, moments or float32 copy.
      opt_state: Optimizer state of `params`.
      ema: Moving average of `params`, or None.
    """

    step: Int[Array, ""]
    params: Params
    frozen: Params
    opt_state: Any
    ema: Params | None = None

    def apply_gradients(
        self, gradients: Params, optimizer: optax.GradientTransformation, ema_decay: float | Array = 0.0
    ) -> Self:
        """Returns the state after one optimizer update.

        Args:
          ema_decay: Decay of the moving average, if the state has one.
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
    """Creates the state before the first step. Call it under jit.

    Args:
      params: Trained parameters, boxed or not.
      frozen: Frozen parameters, boxed or not.
      optimizer: Optimizer of `params`.
      frozen_dtype: Dtype of the frozen parameters. On a CPU float32 is about ten times as fast as bfloat16.
      ema: Whether the state has a moving average, which starts at the parameters.
    """
    params = _cast(params, "float32")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=_cast(frozen, frozen_dtype),
        opt_state=optimizer.init(unbox(params)),
        # Copies, because a step donates its arrays and none can be donated twice.
        ema=jax.tree.map(jnp.copy, params) if ema else None,
    )


def abstract_state(make: Callable[..., TrainState], mesh: Mesh | None, *arguments: Any) -> TrainState:
    """Derives shape, dtype and sharding of every array of `make(*arguments)`, without computing it.

    Optimizer arrays are sharded like their parameters. `Checkpoints.restore` takes the result.

    Args:
      make: Returns a `create_state` of boxed parameters.
      mesh: Mesh; None for the default device.
    """
    boxed: TrainState = jax.eval_shape(make, *arguments)
    if mesh is None:
        device = SingleDeviceSharding(jnp.zeros(()).devices().pop())
        return jax.tree.map(lambda leaf: _with_sharding(leaf, device), unbox(boxed))
    replicated = NamedSharding(mesh, PartitionSpec())

    def shard(tree: Any) -> Any:
        shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(tree), mesh, LOGICAL_RULES)
        return jax.tree.map(_with_sharding, unbox(tree), shardings)

    params = shard(boxed.params)
    params_by_path = dict(jax.tree_util.tree_flatten_with_path(params)[0])

    def shard_moment(path: tuple[Any, ...], leaf: Any) -> Any:
        # The path of a moment ends with the path of its parameter.
        for start in range(len(path)):
            param = params_by_path.get(path[start:])
            if param is not None and param.shape == leaf.shape:
                return _with_sharding(leaf, param.sharding)
        return _with_sharding(leaf, replicated)

    return boxed.replace(
        step=_with_sharding(boxed.step, replicated),
        params=params,
        frozen=shard(boxed.frozen),
        opt_state=jax.tree_util.tree_map_with_path(shard_moment, boxed.opt_state),
        ema=None if boxed.ema is None else shard(boxed.ema),
    )


def random_params(model: Backbone, abstract: Params, key: Key[Array, ""]) -> Params:
    """Initializes parameters sharded: no host or device holds more than its shard.

    Args:
      model: The network.
      abstract: Shapes, dtypes and shardings of the parameters. Top-level parts of the model may be missing.
      key: Random key.
    """

    def make(key: Key[Array, ""]) -> Params:
        params = unbox(init_params(model, key))
        return {part: jax.tree.map(lambda a, to: a.astype(to.dtype), params[part], abstract[part]) for part in abstract}

    params: Params = jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))(key)
    return params


def state_from_params(
    params: Params, frozen: Params, optimizer: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """Creates the state before the first step from given parameters.

    Args:
      params: Trained parameters. Arrays that already have the dtype and sharding of `abstract` are not copied, so that
        a step that donates the state deletes them.
      frozen: Frozen parameters, like `params`.
      optimizer: Optimizer of `params`.
      abstract: Shapes, dtypes and shardings of the state.
    """
    params, frozen = (
        jax.tree.map(lambda array, to: jax.device_put(array.astype(to.dtype, copy=False), to.sharding), tree, like)
        for tree, like in ((params, abstract.params), (frozen, abstract.frozen))
    )

    def init_rest(params: Params) -> tuple[Any, ...]:
        ema = None if abstract.ema is None else jax.tree.map(jnp.copy, params)
        return jnp.zeros((), jnp.int32), optimizer.init(params), ema

    shardings = jax.tree.map(lambda leaf: leaf.sharding, (abstract.step, abstract.opt_state, abstract.ema))
    step, opt_state, ema = jax.jit(init_rest, out_shardings=shardings)(params)
    return TrainState(step, params, frozen, opt_state, ema)


def _with_sharding(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _cast(tree: Params, dtype: str) -> Params:
    def cast(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    # A box is a node of the tree, so its content is cast and its axis names stay.
    return jax.tree.map(cast, tree)


def abstract_train_state(
    objective: Objective,
    trained: Sequence[str],
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
    *,
    frozen_dtype: Dtype = "bfloat16",
    ema: bool = False,
    lora: Lora | None = None,
    reference: bool = False,
) -> TrainState:
    """Derives shapes, dtypes and shardings of a train state. Trained parameters are float32.

    Args:
      objective: The model and its frozen part.
      trained: Patterns of trained parameters (`param_paths.partition`).
      optimizer: Optimizer of the trained parameters.
      mesh: Mesh. Its devices need not be attached. None for the default device.
      frozen_dtype: Dtype of frozen parameters.
      ema: Whether the state has a moving average of the parameters.
      lora: Adapters that are trained in addition; None for none.
      reference: Whether the frozen parameters include a copy of the trained ones, except adapters (`rl.objective`).

    Raises:
      JanusError: A pattern matches nothing, or the image tokenizer or VAE; see also `lora.init_adapters`.
    """

    def make(params: Params) -> TrainState:
        kept, frozen = partition(params, trained)
        if objective.frozen_part in kept:
            part = {"gen_encoder": "the image tokenizer", "vae": "the VAE"}[objective.frozen_part]
            raise JanusError(
                f"The patterns in trained match {objective.frozen_part}, {part}. This loss has no gradient for it; "
                f"exclude it. A recipe such as configs/vq_16.py trains image tokenizers."
            )
        adapters, scales = init_adapters(lora or Lora(), params, frozen, jax.random.key(0))
        frozen = merge(frozen, scales) | ({REFERENCE: kept} if reference and kept else {})
        return create_state(merge(kept, adapters), frozen, optimizer, frozen_dtype=frozen_dtype, ema=ema)

    return abstract_state(make, mesh, abstract_params(objective.model))
