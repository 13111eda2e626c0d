"""The training step: one compiled function from a state and a batch to the next state and metrics.

The step prepares the targets that the data does not provide, computes the loss and its gradient with respect to the
trained parameters, accumulates the gradient over microbatches and applies one optimizer update.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from janus_jax.batch import Batch
from janus_jax.config import Dtype
from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params
from janus_jax.sharding import batch_sharding, num_data_shards, use_mesh
from janus_jax.training.config_dicts import check_values
from janus_jax.training.losses.tokens import LossSums
from janus_jax.training.objectives import Objective, RngStreams
from janus_jax.training.param_paths import merge
from janus_jax.training.state import TrainState

Metrics = dict[str, Float[Array, ""]]
T = TypeVar("T")


@dataclass(frozen=True)
class Microbatching:
    """How a step is split to fit into memory. The result is the same up to rounding.

    Attributes:
      microbatches: Number of microbatches.
      logits_chunk: Target tokens per sequence with logits in memory at a time.
      tokenizer_dtype: Dtype of the image tokenizer or VAE, if the data has no image tokens or latents.
    """

    microbatches: int = 1
    logits_chunk: int = 512
    tokenizer_dtype: Dtype = "bfloat16"

    def __post_init__(self) -> None:
        check_values(self, "config.resources", microbatches=1, logits_chunk=1)

    def check(self, batch_size: int, mesh: Mesh | None) -> None:
        """Checks that a batch can be divided evenly.

        Raises:
          JanusError: The batch size is not a multiple of microbatches times devices.
        """
        multiple = num_data_shards(mesh) * self.microbatches
        if batch_size % multiple:
            raise JanusError(
                f"batch_size {batch_size} is not a multiple of {multiple}: {self.microbatches} microbatches "
                f"on {num_data_shards(mesh)} devices along data and fsdp."
            )


@dataclass(frozen=True, eq=False)
class CompiledStep:
    """A jitted function of a state and a batch that runs on its mesh."""

    function: Any
    mesh: Mesh | None

    def __call__(self, state: TrainState, batch: Any) -> Any:
        with use_mesh(self.mesh):
            return self.function(state, batch)

    def lower(self, state: TrainState, batch: Any) -> Any:
        """Lowers the function for these arrays or shapes."""
        with use_mesh(self.mesh):
            return self.function.lower(state, batch)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    microbatching: Microbatching,
    abstract_state: TrainState,
    mesh: Mesh | None,
    *,
    ema_decay: float = 0.0,
    seed: int = 0,
) -> CompiledStep:
    """Compiles `(state, batch) -> (state, metrics)`. The input state is donated.

    If the gradient is not finite, parameters and optimizer state keep their values and `metrics["finite"]` is 0. Only
    the step number advances.

    Args:
      objective: Model and loss.
      optimizer: Optimizer of the trained parameters.
      microbatching: How the batch is split.
      abstract_state: Shapes, dtypes and shardings of the state.
      mesh: Mesh that holds the state; None for a single device.
      ema_decay: Decay of the moving average of the parameters, if the state has one.
      seed: Seed of all randomness in the step, combined with the step number.

    Returns:
      The compiled step. Metrics: `loss`, `loss/TERM` and `tokens/TERM` for each loss term, `grad_norm` (before
      clipping), and `finite`.
    """
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, sums = compute_gradients(objective, microbatching, state.params, state.frozen, batch, key=key)
        if mesh is not None:
            grads = lax.with_sharding_constraint(grads, state_shardings.params)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm)
        updated = state.apply_gradients(grads, optimizer, ema_decay)
        metrics = _loss_metrics(sums) | {"grad_norm": grad_norm, "finite": finite * 1.0}
        return _select(finite, updated, state), metrics

    return _compile(step, state_shardings, mesh, returns_state=True)


def make_evaluation_step(
    objective: Objective,
    microbatching: Microbatching,
    abstract_state: TrainState,
    mesh: Mesh | None,
    *,
    seed: int = 0,
) -> CompiledStep:
    """Compiles `(state, batch) -> LossSums`. The state is not donated.

    All randomness depends on the seed only, so that the losses of different steps are comparable.
    """

    def step(state: TrainState, batch: Batch) -> LossSums:
        params = merge(state.params, state.frozen)
        rngs = RngStreams(jax.random.key(seed), jnp.arange(batch.shape[0]))
        targets = objective.prepare_targets(params, batch, rngs, microbatching.tokenizer_dtype)
        scales = objective.terms.scales(objective.target_counts(batch))
        return objective.loss(params, targets, scales, microbatching.logits_chunk).sums

    return _compile(step, jax.tree.map(lambda leaf: leaf.sharding, abstract_state), mesh, returns_state=False)


def put_batch(batch: Batch, mesh: Mesh | None) -> Batch:
    """Moves a batch to its devices. Each process passes its own sequences."""
    if mesh is None:
        return jax.device_put(batch)
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)


def compute_gradients(
    objective: Objective,
    microbatching: Microbatching,
    trained: Params,
    frozen: Params,
    batch: Batch,
    *,
    key: Key[Array, ""] | None = None,
) -> tuple[Params, LossSums]:
    """Computes the gradient of the loss with respect to the trained parameters, and the loss sums.

    The loss uses means over the targets of the whole batch, independent of the number of devices and microbatches.

    Args:
      key: Random key of the step; None for that of seed 0.
    """
    key = jax.random.key(0) if key is None else key
    # The counts are known before the model runs, so the gradients of microbatches only have to be added.
    scales = objective.terms.scales(objective.target_counts(batch))

    def loss(trained: Params, targets: Any) -> tuple[Float[Array, ""], LossSums]:
        loss = objective.loss(merge(trained, frozen), targets, scales, microbatching.logits_chunk)
        return loss.value, loss.sums

    def microbatch_gradients(part: Batch, indices: Int[Array, " B"]) -> tuple[Params, LossSums]:
        # Outside `grad`, because targets carry no gradient.
        rngs = RngStreams(key, indices)
        targets = objective.prepare_targets(merge(trained, frozen), part, rngs, microbatching.tokenizer_dtype)
        return jax.grad(loss, has_aux=True)(trained, targets)

    indices = jnp.arange(batch.shape[0])
    if microbatching.microbatches == 1:
        return microbatch_gradients(batch, indices)

    def accumulate(total: tuple[Params, LossSums], part: tuple[Batch, Any]) -> tuple[tuple[Params, LossSums], None]:
        return jax.tree.map(jnp.add, total, microbatch_gradients(*part)), None

    zeros = jnp.zeros(len(objective.terms.names), jnp.float32)
    start = jax.tree.map(jnp.zeros_like, trained), LossSums(zeros, zeros, objective.terms)
    total, _ = lax.scan(accumulate, start, split_batch((batch, indices), microbatching.microbatches))
    return total


def split_batch(batch: T, microbatches: int) -> T:
    """Splits the leading axis into interleaved microbatches, each with an equal share of every device's sequences."""

    def split(x: Array) -> Array:
        x = x.reshape(len(x) // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return nn.with_logical_constraint(x, (None, "batch", *(None,) * (x.ndim - 2)))

    return jax.tree.map(split, batch)


def _select(finite: Array, updated: TrainState, previous: TrainState) -> TrainState:
    """Returns the updated state, with the previous values if the gradient is not finite."""
    changing = ("params", "opt_state", "ema")
    new, old = ({name: getattr(state, name) for name in changing} for state in (updated, previous))
    return updated.replace(**jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old))


def _loss_metrics(sums: LossSums) -> Metrics:
    losses = {f"loss/{name}": loss for name, loss in zip(sums.terms.names, sums.term_means, strict=True)}
    tokens = {f"tokens/{name}": count for name, count in zip(sums.terms.names, sums.counts, strict=True)}
    return {"loss": sums.loss} | losses | tokens


def _compile(function: Callable[..., Any], state: Any, mesh: Mesh | None, *, returns_state: bool) -> CompiledStep:
    """Compiles a function of a state and a batch, given the state's shardings.

    With `returns_state` the function returns the next state and other values, and the input state is donated.
    """
    donated = ("state",) if returns_state else ()
    if mesh is None:
        return CompiledStep(jax.jit(function, donate_argnames=donated), mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    ins, outs = (state, batch_sharding(mesh)), (state, replicated) if returns_state else replicated
    return CompiledStep(jax.jit(function, in_shardings=ins, out_shardings=outs, donate_argnames=donated), mesh)
