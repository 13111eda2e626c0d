"""From logits to ids: temperature, top-k and top-p, one stream of randomness a row."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from janus_jax.errors import JanusError

Strategy = Literal["greedy", "all", "filtered"]

INVALID_TOKEN = -1
"""In place of an id: there were no numbers to draw it from."""


class SamplingParams(NamedTuple):
    """The numbers of a `SamplingConfig`, as arguments of a compiled function."""

    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class SamplingConfig:
    """How an id is drawn from its logits.

    Attributes:
      temperature: what the logits are divided by; 0 takes the largest.
      top_k: only the k largest logits are drawn from; 0, all.
      top_p: only the fewest ids whose probabilities add up to p are drawn from, after temperature and top-k
        (nucleus sampling, arXiv 1904.09751); 1, all.

    Raises:
      JanusError: a number is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 1e-6 <= self.temperature <= 1e6:
            raise JanusError(f"temperature is {self.temperature}; it must be 0 (greedy) or from 1e-6 to 1e6.")
        if not 0 <= self.top_k < 2**31:
            raise JanusError(f"top_k is {self.top_k}; it must be 0 (all) or a positive number below 2**31.")
        if not 0 < self.top_p <= 1:
            raise JanusError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")

    @property
    def strategy(self) -> Strategy:
        """What has to be compiled; the numbers themselves are arguments, and changing them compiles nothing."""
        if self.temperature == 0:
            return "greedy"
        return "filtered" if self.top_k > 0 or self.top_p < 1 else "all"

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_k, self.top_p)


def sampling_keys(seed: int, row: int, samples: range) -> Key[Array, " N"]:
    """A key for each of these samples of a row: what it draws depends on nothing else in the batch.

    Raises:
      JanusError: the seed is no whole number from 0 to 2**32 - 1, which is what a key can tell apart.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise JanusError(f"seed is {seed!r}; it must be a whole number from 0 to 2**32 - 1.")
    base = jax.random.fold_in(jax.random.key(seed), row)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, jnp.arange(samples.start, samples.stop))


def draw(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    step: Int[Array, ""] | int,
    knobs: SamplingParams,
    strategy: Strategy,
) -> Int[Array, " B"]:
    """One id a row.

    Args:
      logits: float32.
      keys: one a row, the same at every step.
      step: number of the step, which sets the steps' randomness apart.
      knobs, strategy: of a `SamplingConfig`.

    Returns:
      The ids; `INVALID_TOKEN` where logits are NaN, which `check_sampled` tells the user of.
    """
    ids = _draw(logits, keys, step, knobs, strategy)
    return jnp.where(jnp.isnan(logits.max(axis=-1)), INVALID_TOKEN, ids)


def check_sampled(ids: Int[np.ndarray, "..."]) -> None:
    """Checks that every id was drawn from numbers.

    Raises:
      JanusError: one was not.
    """
    if (ids == INVALID_TOKEN).any():
        raise JanusError("The model's logits are not numbers; its weights are damaged: convert or fetch them again.")


def _draw(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    step: Int[Array, ""] | int,
    knobs: SamplingParams,
    strategy: Strategy,
) -> Int[Array, " B"]:
    if strategy == "greedy":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / knobs.temperature
    if strategy == "filtered":
        logits = jnp.where(_kept(logits, knobs), logits, -jnp.inf)
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
    return jax.vmap(jax.random.categorical)(step_keys, logits).astype(jnp.int32)


def _kept(logits: Float[Array, "B V"], knobs: SamplingParams) -> Bool[Array, "B V"]:
    """Which ids survive top-k and top-p. The likeliest id always does."""
    vocab_size = logits.shape[-1]
    ranked = -jnp.sort(-logits, axis=-1)
    top_k = jnp.where(knobs.top_k > 0, jnp.minimum(knobs.top_k, vocab_size), vocab_size)
    ranks = jnp.arange(vocab_size)
    probabilities = jax.nn.softmax(jnp.where(ranks < top_k, ranked, -jnp.inf), axis=-1)
    # The mass before an id decides, so that the id that crosses p is kept.
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = (ranks < top_k) & (mass_before < knobs.top_p)
    smallest = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
    return logits >= smallest
