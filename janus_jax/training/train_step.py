"""The training step: a state and a batch in, the next state and what to report out.

In order: what did not come with the data (image ids; latents, times and noise), the loss, its gradient for the trained
part alone, summed over microbatches, one optimizer update. All of it is one compiled function over the whole mesh.
"""

from collections.abc import Callable, Sequence
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
from janus_jax.models.backbone import Backbone, Params
from janus_jax.models.factory import abstract_params, init_params
from janus_jax.sharding import batch_sharding, num_data_shards, use_mesh
from janus_jax.training.lora import NO_LORA, Lora, init_adapters
from janus_jax.training.losses.tokens import LossSums
from janus_jax.training.objectives import RngStreams, objective_of
from janus_jax.training.param_paths import merge, partition
from janus_jax.training.state import TrainState, abstract_state, create_state, init_sharded_state

Metrics = dict[str, Float[Array, ""]]
T = TypeVar("T")


@dataclass(frozen=True)
class Microbatching:
    """How a step's work is cut to fit the memory; the result is the same but for rounding.

    Attributes:
      microbatches: parts of the batch's rows whose gradients are taken one after the other.
      logits_chunk: supervised places of a row whose logits are in memory at a time.
      tokenizer_dtype: in which image ids, or latents, are made that did not come with the data.
    """

    microbatches: int = 1
    logits_chunk: int = 512
    tokenizer_dtype: Dtype = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("microbatches", "logits_chunk"):
            if getattr(self, name) < 1:
                raise JanusError(f"cut.{name} is {getattr(self, name)!r}; it must be at least 1.")

    def check(self, batch_size: int, mesh: Mesh | None) -> None:
        """Refuses a number of rows that cannot be dealt out evenly.

        Raises:
          JanusError: the sentence names the numbers.
        """
        share = num_data_shards(mesh) * self.microbatches
        if batch_size % share:
            raise JanusError(
                f"batch_size {batch_size} is not a multiple of {share}: {self.microbatches} microbatches "
                f"on {num_data_shards(mesh)} devices along data and fsdp."
            )


@dataclass(frozen=True, eq=False)
class Step:
    """A compiled function of a state and a batch, on its mesh."""

    function: Any
    mesh: Mesh | None

    def __call__(self, state: TrainState, batch: Batch) -> Any:
        with use_mesh(self.mesh):
            return self.function(state, batch)

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """The function as it would be compiled for these arrays, or for these shapes."""
        with use_mesh(self.mesh):
            return self.function.lower(state, batch)


def abstract_train_state(
    model: Backbone,
    trained: Sequence[str],
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
    *,
    frozen_dtype: Dtype = "bfloat16",
    ema: bool = False,
    lora: Lora = NO_LORA,
) -> TrainState:
    """Shapes, dtypes and shardings of the state in which these parts of the model train (see `partition`).

    What is frozen is kept in `frozen_dtype`; what is trained, in float32.

    Args:
      lora: adapters that train besides.

    Raises:
      JanusError: a pattern names nothing, or the image tokenizer, which no gradient reaches; see also `init_adapters`.
    """

    untrained = objective_of(model).untrained

    def make(params: Params) -> TrainState:
        params, frozen = _split(params, trained, lora, jax.random.key(0))
        if untrained in params:
            raise JanusError(
                f"The trained parts hold some of {untrained}, {_UNTRAINED[untrained]}, which no gradient of these "
                f"losses reaches; leave it out."
            )
        return create_state(params, frozen, optimizer, frozen_dtype=frozen_dtype, ema=ema)

    return abstract_state(make, mesh, abstract_params(model))


_UNTRAINED = {
    "gen_encoder": "the image tokenizer (train it with a recipe such as vq_16)",
    "vae": "the VAE",
}


def random_train_state(
    model: Backbone,
    trained: Sequence[str],
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    key: Key[Array, ""],
    lora: Lora = NO_LORA,
) -> TrainState:
    """The state before the first step of freshly made parameters, each array made in its place.

    Args:
      abstract: see `abstract_train_state`, made with the same parts, the same optimizer and the same adapters.
    """

    def make(key: Key[Array, ""]) -> TrainState:
        params, frozen = _split(init_params(model, key), trained, lora, key)
        dtypes = [leaf.dtype.name for leaf in jax.tree.leaves(abstract.frozen)]
        return create_state(params, frozen, optimizer, frozen_dtype=dtypes[0], ema=abstract.ema is not None)

    return init_sharded_state(make, abstract, key)


def _split(params: Params, trained: Sequence[str], lora: Lora, key: Key[Array, ""]) -> tuple[Params, Params]:
    """What trains, adapters included, and what is frozen."""
    kept, rest = partition(params, trained)
    adapters, scales = init_adapters(lora, params, rest, key)
    return merge(kept, adapters), merge(rest, scales)


def make_train_step(
    model: Backbone,
    optimizer: optax.GradientTransformation,
    cut: Microbatching,
    abstract: TrainState,
    mesh: Mesh | None,
    ema_decay: float = 0.0,
    seed: int = 0,
) -> Step:
    """The step `(state, batch) -> (state, metrics)`. It takes the state for its own: the old one's arrays are gone.

    Metrics: `loss`, `loss/TERM` and `tokens/TERM` by term (tasks, and of a flow the alignment), `grad_norm` before the
    clip, and `finite`. Where the gradient is not finite, `finite` is 0 and the state is as it was, but for `step`.

    Args:
      abstract: shapes and shardings of the state (`state.abstract_state`).
      mesh: that the state lies on; None for one device.
      ema_decay: see `TrainState.apply_gradients`.
      seed: of what is drawn in a step, such as a flow's noise: with the step and a row's place it says all.
    """
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, totals = gradients(model, cut, state.params, state.frozen, batch, key)
        if mesh is not None:
            grads = lax.with_sharding_constraint(grads, state_shardings.params)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm)
        after = state.apply_gradients(grads, optimizer, ema_decay)
        return _chosen(finite, after, state), _metrics(totals) | {"grad_norm": grad_norm, "finite": finite * 1.0}

    return Step(_compiled(step, state_shardings, mesh, (state_shardings, _everywhere(mesh)), donated=True), mesh)


def make_evaluation_step(
    model: Backbone, cut: Microbatching, abstract: TrainState, mesh: Mesh | None, seed: int = 0
) -> Step:
    """The step `(state, batch) -> LossSums`, which add up over batches; the state stays.

    What is drawn is drawn from the seed alone, so that losses of two steps can be compared.
    """
    objective = objective_of(model)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def step(state: TrainState, batch: Batch) -> LossSums:
        params = merge(state.params, state.frozen)
        draws = RngStreams(jax.random.key(seed), jnp.arange(batch.shape[0]))
        task = objective.prepare_targets(model, params, batch, draws, cut.tokenizer_dtype)
        scales = objective.terms(model).scales(objective.counts(model, batch))
        return objective.loss(model, params, task, scales, cut.logits_chunk).totals

    return Step(_compiled(step, state_shardings, mesh, _everywhere(mesh), donated=False), mesh)


def put_batch(batch: Batch, mesh: Mesh | None) -> Batch:
    """A batch on its devices: each process gives its own rows."""
    if mesh is None:
        return jax.device_put(batch)
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def gradients(
    model: Backbone,
    cut: Microbatching,
    trained: Params,
    frozen: Params,
    batch: Batch,
    key: Key[Array, ""] | None = None,
) -> tuple[Params, LossSums]:
    """The gradient of the batch's loss for the trained part, and the loss's sums.

    The loss is of means over the supervised places of the whole batch, on however many devices and in however many
    microbatches it is computed.

    Args:
      key: of what is drawn; that of seed 0 where None.
    """
    objective, key = objective_of(model), jax.random.key(0) if key is None else key
    terms = objective.terms(model)
    # Known before the model runs, so that the parts' gradients only have to be added.
    scales = terms.scales(objective.counts(model, batch))

    def loss(trained: Params, task: Any) -> tuple[Float[Array, ""], LossSums]:
        loss = objective.loss(model, merge(trained, frozen), task, scales, cut.logits_chunk)
        return loss.value, loss.totals

    def of_part(part: Batch, rows: Int[Array, " B"]) -> tuple[Params, LossSums]:
        # Outside the gradient: what is learnt from is no way to learn.
        task = objective.prepare_targets(
            model, merge(trained, frozen), part, RngStreams(key, rows), cut.tokenizer_dtype
        )
        return jax.grad(loss, has_aux=True)(trained, task)

    rows = jnp.arange(batch.shape[0])
    if cut.microbatches == 1:
        return of_part(batch, rows)

    def add(
        sums: tuple[Params, LossSums], part: tuple[Batch, Int[Array, " B"]]
    ) -> tuple[tuple[Params, LossSums], None]:
        return jax.tree.map(jnp.add, sums, of_part(*part)), None

    nothing = jnp.zeros(len(terms.names), jnp.float32)
    start = jax.tree.map(jnp.zeros_like, trained), LossSums(nothing, nothing, terms)
    sums, _ = lax.scan(add, start, _parts((batch, rows), cut))
    return sums


def _parts(rows: T, cut: Microbatching) -> T:
    """A tree of rows dealt out to microbatches in turn, so that each has an equal share of every device's rows."""

    def deal(x: Array) -> Array:
        x = x.reshape(len(x) // cut.microbatches, cut.microbatches, *x.shape[1:]).swapaxes(0, 1)
        return nn.with_logical_constraint(x, (None, "batch", *(None,) * (x.ndim - 2)))

    return jax.tree.map(deal, rows)


def _chosen(finite: Array, after: TrainState, before: TrainState) -> TrainState:
    """The state after the step, or with what it was before."""
    changing = ("params", "opt_state", "ema")
    news, olds = ({name: getattr(state, name) for name in changing} for state in (after, before))
    return after.replace(**jax.tree.map(lambda new, old: jnp.where(finite, new, old), news, olds))


def _metrics(totals: LossSums) -> Metrics:
    losses = {f"loss/{name}": loss for name, loss in zip(totals.terms.names, totals.means, strict=True)}
    places = {f"tokens/{name}": count for name, count in zip(totals.terms.names, totals.counts, strict=True)}
    return {"loss": totals.mean} | losses | places


def _compiled(function: Callable[..., Any], state: Any, mesh: Mesh | None, out: Any, *, donated: bool) -> Any:
    donate = ("state",) if donated else ()
    if mesh is None:
        return jax.jit(function, donate_argnames=donate)
    return jax.jit(function, in_shardings=(state, batch_sharding(mesh)), out_shardings=out, donate_argnames=donate)


def _everywhere(mesh: Mesh | None) -> NamedSharding | None:
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())
