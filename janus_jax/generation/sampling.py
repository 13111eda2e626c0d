"""Sampling of tokens from logits: temperature, top-k and top-p, with a random key per sequence."""

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from janus_jax.errors import JanusError

Strategy = Literal["greedy", "all", "filtered"]
"""How a token is chosen: the most likely token, sampled from all tokens, or sampled from those that pass the filters.

The filters are top-k and top-p.
"""

INVALID_TOKEN = -1
"""Result of sampling from logits that are NaN."""


class SamplingParams(NamedTuple):
    """The numbers of a `SamplingConfig`. They are traced: a new value does not compile a new program."""

    temperature: Any
    top_k: Any
    top_p: Any


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are sampled from logits.

    Attributes:
      temperature: Divisor of the logits. 0 takes the most likely token.
      top_k: Number of most likely tokens to sample from. 0 disables the filter.
      top_p: Total probability of the tokens to sample from. These are the smallest number of most likely tokens that
        reach it, after temperature and top-k (nucleus sampling, arXiv 1904.09751). 1 disables the filter.

    Raises:
      JanusError: A number is out of range.
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
        """How a token is chosen. Static: a new value compiles a new program."""
        if self.temperature == 0:
            return "greedy"
        return "filtered" if self.top_k > 0 or self.top_p < 1 else "all"

    @property
    def params(self) -> SamplingParams:
        """Temperature, top-k and top-p as arguments of a compiled function."""
        return SamplingParams(self.temperature, self.top_k, self.top_p)


def sampling_keys(seed: int, prompt: int, samples: range) -> Key[Array, " N"]:
    """Returns a random key for each sample of a prompt.

    Args:
      seed: Seed of all prompts and samples.
      prompt: Index of the prompt.
      samples: Indices of the samples.

    Raises:
      JanusError: The seed is not an integer from 0 to 2**32 - 1.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise JanusError(f"seed is {seed!r}; it must be a whole number from 0 to 2**32 - 1.")
    base = jax.random.fold_in(jax.random.key(seed), prompt)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, jnp.arange(samples.start, samples.stop))


def sample_tokens(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    step: Int[Array, ""] | Int[Array, " B"] | int,
    params: SamplingParams,
    strategy: Strategy,
) -> Int[Array, " B"]:
    """Samples a token for each sequence.

    Args:
      logits: Logits in float32.
      keys: Random key of each sequence, the same at every step.
      step: Index of the token in its sequence, one for all or one for each. It is folded into the keys.
      params: Numbers of a `SamplingConfig`.
      strategy: Strategy of the same `SamplingConfig`.

    Returns:
      The tokens. `INVALID_TOKEN` where logits are NaN.
    """
    if strategy == "greedy":
        tokens = jnp.argmax(logits, axis=-1)
    else:
        scaled = logits / params.temperature
        if strategy == "filtered":
            scaled = jnp.where(_passes_filters(scaled, params), scaled, -jnp.inf)
        step_keys = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(step, keys.shape))
        tokens = jax.vmap(jax.random.categorical)(step_keys, scaled)
    return jnp.where(jnp.isnan(logits.max(axis=-1)), INVALID_TOKEN, tokens.astype(jnp.int32))


def sample_each(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], steps: Int[Array, " B"], params: SamplingParams
) -> Int[Array, " B"]:
    """Samples a token for each sequence with its own settings.

    A token equals that of `sample_tokens` with the same settings. Settings that no sequence has take no time.

    Args:
      logits: Logits in float32.
      keys: Random key of each sequence, the same at every step.
      steps: Index of the token in each sequence.
      params: Numbers of the `SamplingConfig` of each sequence, arrays of length B. Temperature 0 is greedy.

    Returns:
      The tokens. `INVALID_TOKEN` where logits are NaN.
    """
    greedy = sample_tokens(logits, keys, steps, params, "greedy")
    is_random = params.temperature > 0
    has_filter = is_random & ((params.top_k > 0) | (params.top_p < 1))
    params = params._replace(temperature=jnp.where(is_random, params.temperature, 1))

    def sample(strategy: Strategy, chosen: Bool[Array, " B"], otherwise: Int[Array, " B"]) -> Int[Array, " B"]:
        """Returns `otherwise` with new tokens for the chosen sequences."""
        return jax.lax.cond(
            chosen.any(),
            lambda *rows: jax.lax.platform_dependent(
                *rows,
                cpu=functools.partial(_sample_one_by_one, strategy=strategy),
                default=functools.partial(_sample_together, strategy=strategy),
            ),
            lambda *rows: rows[1],
            *(chosen, otherwise, logits, keys, steps, params),
        )

    # Rounding in the cumulative sum can drop tokens, so rows without filters do not pass through it.
    return sample("filtered", has_filter, sample("all", is_random & ~has_filter, greedy))


def check_sampled(tokens: Int[np.ndarray, "..."]) -> None:
    """Checks that no token was sampled from NaN logits.

    Raises:
      JanusError: A token was sampled from NaN logits.
    """
    check_not_nan(tokens == INVALID_TOKEN)


def check_not_nan(is_nan: Bool[np.ndarray, "..."]) -> None:
    """Checks that no logits were NaN.

    Raises:
      JanusError: Some were.
    """
    if is_nan.any():
        raise JanusError(
            "The logits are NaN: a weight is not finite, because the training diverged or the file is damaged, or "
            "values exceed the range of the dtype; try float32, or convert or fetch the weights again."
        )


def _sample_together(
    chosen: Bool[Array, " B"],
    otherwise: Int[Array, " B"],
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    steps: Int[Array, " B"],
    params: SamplingParams,
    *,
    strategy: Strategy,
) -> Int[Array, " B"]:
    columns = SamplingParams(*(numbers[:, None] for numbers in params))
    return jnp.where(chosen, sample_tokens(logits, keys, steps, columns, strategy), otherwise)


def _sample_one_by_one(*rows: Any, strategy: Strategy) -> Int[Array, " B"]:
    """Does the same as `_sample_together`, for CPUs, where random numbers for rows that need none are slow."""

    def sample(row: Any) -> Int[Array, ""]:
        chosen, otherwise, logits, key, step, params = row
        return jax.lax.cond(
            chosen,
            lambda: sample_tokens(logits[None], key[None], step[None], params, strategy)[0],
            lambda: otherwise,
        )

    return jax.lax.map(sample, rows)


def _passes_filters(logits: Float[Array, "B V"], params: SamplingParams) -> Bool[Array, "B V"]:
    """Returns True for the tokens that pass top-k and top-p. The most likely token always passes."""
    vocab_size = logits.shape[-1]
    ranked = -jnp.sort(-logits, axis=-1)
    top_k = jnp.where(params.top_k > 0, jnp.minimum(params.top_k, vocab_size), vocab_size)
    ranks = jnp.arange(vocab_size)
    probabilities = jax.nn.softmax(jnp.where(ranks < top_k, ranked, -jnp.inf), axis=-1)
    # Compares the probability before each token, so that the token that crosses p is kept.
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = (ranks < top_k) & (mass_before < params.top_p)
    smallest = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
    return logits >= smallest
