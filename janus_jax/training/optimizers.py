"""Optimizers: AdamW or Muon, with gradient clipping, decoupled weight decay and a learning rate schedule."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import optax
from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from janus_jax.errors import JanusError
from janus_jax.training.config_dicts import check_values
from janus_jax.training.muon_axes import matrix_axes
from janus_jax.training.param_paths import map_named, matches

ScheduleShape = Literal["constant", "cosine"]
MomentsDtype = Literal["float32", "bfloat16"]

# A bfloat16 has 8 significant bits: adding less than 1/256 of its value does not change it.
_MAX_BFLOAT16_BETA = 0.99


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimizer: `torch.optim.AdamW` after `clip_grad_norm_`, or Muon for matrices.

    Attributes:
      learning_rate: Peak learning rate, reached at the end of the warmup.
      schedule: "constant", or "cosine" from the end of the warmup to the floor at the last step.
      floor: Final learning rate of the cosine, as a fraction of `learning_rate`.
      warmup_steps: Steps of the linear warmup. Step 1 of n has a learning rate of 1/n of the peak.
      weight_decay: Decoupled weight decay, multiplied by the learning rate.
      no_decay: Patterns of parameters without decay, such as "*/bias".
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Epsilon of Adam.
      clip_norm: Maximum global gradient norm; None disables clipping.
      moments_dtype: Dtype in which the moments are stored. They are always computed in float32.
      muon_learning_rate: Peak learning rate of Muon (orthogonalized momentum) for matrices. Embedding tables, output
        heads, norms and biases use Adam. None uses Adam for all parameters.

    Raises:
      JanusError: A value is out of range.
    """

    learning_rate: float
    schedule: ScheduleShape = "constant"
    floor: float = 0.0
    warmup_steps: int = 0
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = ()
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    moments_dtype: MomentsDtype = "float32"
    muon_learning_rate: float | None = None

    def __post_init__(self) -> None:
        schedules, dtypes = get_args(ScheduleShape), get_args(MomentsDtype)
        check_values(
            self,
            "optimizer",
            ("schedule", self.schedule in schedules, f"one of {', '.join(schedules)}"),
            ("moments_dtype", self.moments_dtype in dtypes, f"one of {', '.join(dtypes)}"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("muon_learning_rate", self.muon_learning_rate is None or self.muon_learning_rate > 0, "above 0, or None"),
            ("floor", 0 <= self.floor <= 1, "within 0..1"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("b1", 0 <= self.b1 < 1, "within 0..1 and below 1"),
            ("b2", 0 <= self.b2 < 1, "within 0..1 and below 1"),
            ("eps", self.eps > 0, "above 0"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0, or None"),
        )
        if self.moments_dtype == "bfloat16" and max(self.b1, self.b2) > _MAX_BFLOAT16_BETA:
            raise JanusError(
                f"optimizer.moments_dtype bfloat16 is too coarse for b1 = {self.b1} and b2 = {self.b2}; "
                f"use float32, or betas of at most {_MAX_BFLOAT16_BETA}."
            )


def make_schedule(config: OptimizerConfig, total_steps: int, peak: float | None = None) -> optax.Schedule:
    """Makes the learning rate schedule, a function of the step counted from 0.

    Args:
      config: Settings.
      total_steps: Steps at which the cosine reaches its floor, including the warmup.
      peak: Peak learning rate; None for `config.learning_rate`.

    Raises:
      JanusError: The warmup is longer than `total_steps`.
    """
    warmup = config.warmup_steps
    if warmup > total_steps:
        raise JanusError(f"optimizer.warmup_steps is {warmup}; it must be at most the {total_steps} steps of training.")
    peak = config.learning_rate if peak is None else peak
    main = optax.constant_schedule(peak)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(total_steps - warmup, 1), config.floor)
    if not warmup:
        return main
    # optax's linear schedule starts at the first value; the first step of n has 1/n of the peak.
    rise = optax.linear_schedule(peak / warmup, peak, warmup - 1) if warmup > 1 else optax.constant_schedule(peak)
    return optax.join_schedules([rise, main], [warmup])


def make_optimizer(config: OptimizerConfig, total_steps: int, params: Any = None) -> optax.GradientTransformation:
    """Makes the optimizer.

    Args:
      config: Settings.
      total_steps: See `make_schedule`.
      params: Trained parameters, arrays or shapes, with logical axis names where they have some
        (`models.factory.abstract_params`). Only Muon needs them: the names distinguish inputs and outputs of matrices.

    Raises:
      JanusError: The warmup is longer than `total_steps`.
    """
    decay = optax.add_decayed_weights(
        config.weight_decay, lambda tree: map_named(lambda name, _: not matches(name, config.no_decay), tree)
    )
    adamw = optax.chain(
        _store_moments_in(optax.scale_by_adam(config.b1, config.b2, config.eps), config.moments_dtype),
        decay,
        optax.scale_by_learning_rate(make_schedule(config, total_steps)),
    )
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    if config.muon_learning_rate is None:
        return optax.chain(clip, adamw)
    if params is None:
        raise TypeError("make_optimizer needs params for Muon.")
    matrices = {name: MuonDimensionNumbers(axes.inputs, axes.outputs) for name, axes in matrix_axes(params).items()}

    def dimension_numbers(tree: Any) -> Any:
        return map_named(lambda name, _: matrices[name], tree)

    muon = optax.chain(
        _store_moments_in(scale_by_muon(weight_dimension_numbers=dimension_numbers), config.moments_dtype),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_by_shape, updates, dimension_numbers(updates))),
        decay,
        optax.scale_by_learning_rate(make_schedule(config, total_steps, config.muon_learning_rate)),
    )

    def labels(tree: Any) -> Any:
        return map_named(lambda name, _: "muon" if name in matrices else "adamw", tree)

    return optax.chain(clip, optax.partition({"muon": muon, "adamw": adamw}, labels))


def _store_moments_in(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """Stores the moments of `inner` in `dtype` between steps."""

    def cast(state: Any, to: str) -> Any:
        moments = {name: optax.tree.cast(getattr(state, name), to) for name in ("mu", "nu") if hasattr(state, name)}
        return state._replace(**moments)

    def init(params: Any) -> Any:
        return cast(inner.init(params), dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(updates, cast(state, "float32"), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _scale_by_shape(update: Float[Array, "..."], axes: MuonDimensionNumbers) -> Float[Array, "..."]:
    """Makes the RMS of an update independent of the matrix shape (https://kellerjordan.github.io/posts/muon)."""

    def size(group: Any) -> int:
        return math.prod(update.shape[axis] for axis in group)

    return update * max(1.0, size(axes.output_axis) / size(axes.reduction_axis)) ** 0.5
