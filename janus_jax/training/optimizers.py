"""From a config to an optimizer: AdamW or Muon, a clip, decoupled decay, a schedule."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from janus_jax.errors import JanusError
from janus_jax.training.muon_axes import matrix_axes
from janus_jax.training.param_paths import map_named, matches

ScheduleShape = Literal["constant", "cosine"]
MomentsDtype = Literal["float32", "bfloat16"]
Schedule = Callable[[int | Int[Array, ""]], Float[Array, ""]]

# A bfloat16 keeps 8 bits: it does not move when less than 1/256 of it is added.
_HIGHEST_BFLOAT16_BETA = 0.99


@dataclass(frozen=True)
class OptimizerConfig:
    """What is done with a gradient. As `torch.optim.AdamW` does it, after `clip_grad_norm_`.

    Attributes:
      learning_rate: the highest, which the warm-up ends at.
      schedule: "constant", or "cosine" from the end of the warm-up down to the floor at the last step.
      floor: what a cosine ends at, as a share of `learning_rate`.
      warmup_steps: over which the rate rises in equal parts: the first of n steps is taken at a rate of 1/n.
      weight_decay: what a step takes off each parameter, as a share of it and times the rate.
      no_decay: patterns of names that do not decay, such as "*/bias"; everything else does.
      b1, b2, eps: of Adam.
      clip_norm: the global norm that gradients are cut down to; None lets them be.
      moments_dtype: in which both moments are kept. They are always reckoned in float32.
      muon_learning_rate: as `learning_rate`, for the matrices, which then take Muon's steps in place of Adam's
        (orthogonalised momentum; tables, heads over a vocabulary, norms and biases stay with Adam); None for no Muon.

    Raises:
      JanusError: a number cannot be what it is.
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
        for name, choices in (("schedule", ScheduleShape), ("moments_dtype", MomentsDtype)):
            if getattr(self, name) not in get_args(choices):
                raise JanusError(
                    f"optimizer.{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(choices))}."
                )
        for name, fits, wanted in (
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("muon_learning_rate", self.muon_learning_rate is None or self.muon_learning_rate > 0, "above 0, or None"),
            ("floor", 0 <= self.floor <= 1, "within 0..1"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("b1", 0 <= self.b1 < 1, "within 0..1 and below 1"),
            ("b2", 0 <= self.b2 < 1, "within 0..1 and below 1"),
            ("eps", self.eps > 0, "above 0"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0, or None"),
        ):
            if not fits:
                raise JanusError(f"optimizer.{name} is {getattr(self, name)!r}; it must be {wanted}.")
        if self.moments_dtype == "bfloat16" and max(self.b1, self.b2) > _HIGHEST_BFLOAT16_BETA:
            raise JanusError(
                f"optimizer.moments_dtype bfloat16 is too coarse for b1 = {self.b1} and b2 = {self.b2}; "
                f"take float32, or betas of {_HIGHEST_BFLOAT16_BETA} at most."
            )


def make_schedule(config: OptimizerConfig, total_steps: int, peak: float | None = None) -> Schedule:
    """The learning rate of each step, counted from 0.

    Args:
      total_steps: that a cosine takes from start to floor, the warm-up included.
      peak: instead of `config.learning_rate`.

    Raises:
      JanusError: the warm-up is longer than all there is.
    """
    if config.warmup_steps > total_steps:
        raise JanusError(
            f"optimizer.warmup_steps is {config.warmup_steps}; it must be at most the {total_steps} steps in all."
        )
    peak = config.learning_rate if peak is None else peak
    decay_steps = max(total_steps - config.warmup_steps, 1)

    def rate(step: int | Int[Array, ""]) -> Float[Array, ""]:
        number = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum((number + 1) / max(config.warmup_steps, 1), 1.0)
        if config.schedule == "constant":
            return peak * warm
        done = jnp.clip((number - config.warmup_steps) / decay_steps, 0.0, 1.0)
        return peak * warm * (config.floor + (1 - config.floor) * (1 + jnp.cos(jnp.pi * done)) / 2)

    return rate


def make_optimizer(config: OptimizerConfig, total_steps: int, params: Any = None) -> optax.GradientTransformation:
    """The optimizer that a config describes; `optax.apply_updates` adds what it gives to the parameters.

    Args:
      total_steps: see `make_schedule`.
      params: the parameters that it will move, arrays or shapes, with the logical names of their axes where they have
        some (`models.family.abstract_params`). Muon alone needs it: names tell a matrix's outputs from its inputs.

    Raises:
      JanusError: the warm-up is too long.
    """
    decay = optax.add_decayed_weights(
        config.weight_decay, lambda tree: map_named(lambda name, _: not matches(name, config.no_decay), tree)
    )
    adamw = optax.chain(
        _in_dtype(optax.scale_by_adam(config.b1, config.b2, config.eps), config.moments_dtype),
        decay,
        optax.scale_by_learning_rate(make_schedule(config, total_steps)),
    )
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    if config.muon_learning_rate is None:
        return optax.chain(clip, adamw)
    if params is None:
        raise TypeError("Muon needs to be told the parameters.")
    found = {name: MuonDimensionNumbers(axes.inputs, axes.outputs) for name, axes in matrix_axes(params).items()}

    def axes(tree: Any) -> Any:
        return map_named(lambda name, _: found[name], tree)

    muon = optax.chain(
        _in_dtype(scale_by_muon(weight_dimension_numbers=axes), config.moments_dtype),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_by_shape, updates, axes(updates))),
        decay,
        optax.scale_by_learning_rate(make_schedule(config, total_steps, config.muon_learning_rate)),
    )

    def kinds(tree: Any) -> Any:
        return map_named(lambda name, _: "muon" if name in found else "adamw", tree)

    return optax.chain(clip, optax.partition({"muon": muon, "adamw": adamw}, kinds))


def _in_dtype(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """Keeps the moments of `inner` in `dtype` from step to step."""

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
    """Makes a step of the same size whatever a matrix's shape (https://kellerjordan.github.io/posts/muon)."""

    def size(of: Any) -> int:
        return math.prod(update.shape[axis] for axis in of)

    return update * max(1.0, size(axes.output_axis) / size(axes.reduction_axis)) ** 0.5
