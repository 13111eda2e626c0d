"""Autoregressive generation of text tokens and image tokens: prefill, then decode steps in one compiled loop.

Classifier-free guidance (Janus, arXiv 2410.13848, section 3.2) adds an unconditional sequence to each generated
sequence. The two are neighbors in the batch, so that sharding the batch never separates them. Q is the number of
sequences that the model reads for each generated sequence: 2 with guidance, 1 without.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from janus_jax.batch import Batch
from janus_jax.errors import JanusError
from janus_jax.generation.padding import CACHE_STEP, round_up
from janus_jax.generation.sampling import SamplingParams, Strategy, sample_tokens
from janus_jax.models.backbone import Backbone, Params, apply
from janus_jax.models.llama import KVCache, grow_cache

KV_AXES = ("batch", "kv_heads", "length", "head_dim")


class DecodeSpec(NamedTuple):
    """Static settings of decoding. A new value compiles a new program.

    Attributes:
      embed: Method of the model that computes embeddings from tokens.
      logits: Method of the model that computes logits from hidden states.
      strategy: How tokens are sampled.
    """

    embed: Callable[..., Array]
    logits: Callable[..., Array]
    strategy: Strategy


class DecodeParams(NamedTuple):
    """Traced settings of decoding. A new value does not compile a new program.

    Attributes:
      sampling: Temperature, top-k and top-p.
      guidance_scale: Guidance scale s, or the weights, of `guide`. Not used without unconditional sequences.
      stop_tokens: Tokens that finish a sequence.
    """

    sampling: SamplingParams
    guidance_scale: Float[Any, "#Q"] | float = 1.0
    stop_tokens: Int[Any, " S"] = np.zeros(0, np.int32)


class DecodeState(NamedTuple):
    """State of R sequences during generation.

    Attributes:
      tokens: Generated tokens, then zeros (in parallel decoding: drafts) up to the length of the cache or beyond.
      num_tokens: Number of generated tokens: one number for all sequences, or in parallel decoding one for each.
      finished: True for sequences that need no more tokens. Tokens generated after that are meaningless.
      cache: Keys and values of the prompt and of all generated tokens except the last.
      positions: Rotary position of the last generated token, which the next decode step reads.
      keys: Random key of each sequence.
    """

    tokens: Int[Array, "R T"]
    num_tokens: Int[Array, ""] | Int[Array, " R"]
    finished: Bool[Array, " R"]
    cache: KVCache
    positions: Int[Array, " R*Q"]
    keys: Key[Array, " R"]


class Decoder:
    """Generates R = P*N sequences, N for each of P prompts, a few tokens per call of `advance`.

    Attributes:
      state: State of the sequences. It contains the first token of each sequence after construction.
      num_tokens: Number of generated tokens. An upper bound if all sequences have finished.
    """

    def __init__(
        self,
        model: Backbone,
        params: Params,
        prompts: Batch,
        keys: Key[Array, "P N"],
        *,
        spec: DecodeSpec,
        settings: DecodeParams,
        max_slots: int = sys.maxsize,
    ) -> None:
        """Runs the model on the prompts and samples the first token of each sequence.

        Args:
          model: The network.
          params: Parameters of the network.
          prompts: P*Q left-padded prompts.
          keys: Random key of each sequence.
          spec: Static settings.
          settings: Traced settings.
          max_slots: Maximum length of the cache.
        """
        self._model, self._params, self._spec, self._settings = model, params, spec, settings
        self._max_slots = max_slots
        self._prompt_length = prompts.shape[1]
        slots = min(round_up(self._prompt_length + 1, CACHE_STEP), max_slots)
        self.state = prefill(model, params, prompts, keys, settings, slots=slots, spec=spec)
        self.num_tokens = 1

    def advance(self, max_steps: int) -> None:
        """Runs up to `max_steps` decode steps.

        Stops earlier when the next step needs a larger cache or every sequence has finished.
        """
        # The last generated token has no slot in the cache yet.
        used = self._prompt_length + self.num_tokens - 1
        slots = self.state.cache.num_slots
        if used == slots:
            slots = min(slots + CACHE_STEP, self._max_slots)
            self.state = grow(self.state, slots)
        steps = min(max_steps, slots - used)
        self.state = decode(self._model, self._params, self.state, self._settings, steps, spec=self._spec)
        self.num_tokens += steps

    def finish(self, finished: Bool[np.ndarray, " R"]) -> None:
        """Marks sequences as finished."""
        self.state = self.state._replace(finished=self.state.finished | jnp.asarray(finished))


@functools.partial(jax.jit, static_argnames=("model", "slots", "spec"))
def prefill(
    model: Backbone,
    params: Params,
    prompts: Batch,
    keys: Key[Array, "P N"],
    settings: DecodeParams,
    *,
    slots: int,
    spec: DecodeSpec,
) -> DecodeState:
    """Runs the model once on each prompt and samples the first token of its N sequences.

    Args:
      slots: Length of the returned cache.
    """
    hidden, cache = apply(model.prefill, params, prompts, slots)
    num_prompts, per_prompt = keys.shape
    cache = repeat_cache(cache, num_prompts, per_prompt)
    positions = repeat_prompts(prompts.positions[:, -1] + 1, num_prompts, per_prompt)
    last = repeat_prompts(hidden[:, -1], num_prompts, per_prompt)
    end = ContextEnd(last, cache, positions)
    return begin(model, params, end, keys.reshape(-1), settings, spec=spec)


class ContextEnd(NamedTuple):
    """The end of R*Q contexts, from which generation starts.

    Attributes:
      hidden: Hidden state of the last position.
      cache: Keys and values of all positions.
      positions: Rotary position of the next token.
    """

    hidden: Float[Array, "R*Q D"]
    cache: KVCache
    positions: Int[Array, " R*Q"]


@functools.partial(jax.jit, static_argnames=("model", "spec"))
def begin(
    model: Backbone,
    params: Params,
    end: ContextEnd,
    keys: Key[Array, " R"],
    settings: DecodeParams,
    *,
    spec: DecodeSpec,
) -> DecodeState:
    """Samples the first token after each context."""
    first = _sample(model, params, end.hidden, keys, 0, settings, spec)
    tokens = jnp.zeros((keys.shape[0], end.cache.num_slots), jnp.int32).at[:, 0].set(first)
    finished = jnp.isin(first, settings.stop_tokens)
    return DecodeState(tokens, jnp.asarray(1, jnp.int32), finished, end.cache, end.positions, keys)


@functools.partial(jax.jit, static_argnames=("model", "spec"), donate_argnames=("state",))
def decode(
    model: Backbone, params: Params, state: DecodeState, settings: DecodeParams, steps: int, *, spec: DecodeSpec
) -> DecodeState:
    """Runs `steps` decode steps, or fewer if all sequences finish. `steps` is a dynamic argument."""
    end = state.num_tokens + steps
    per_sequence = state.positions.shape[0] // state.tokens.shape[0]

    def is_running(state: DecodeState) -> Bool[Array, ""]:
        has_steps = state.num_tokens < end
        # Without stop tokens no sequence finishes early, and the mesh needs no reduction in each step.
        return has_steps & ~state.finished.all() if settings.stop_tokens.shape[0] else has_steps

    def step(state: DecodeState) -> DecodeState:
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.num_tokens - 1, axis=1)
        embedded = call_model(model, params, spec.embed, jnp.repeat(last, per_sequence, axis=0))
        segment_ids = jnp.ones_like(state.positions)[:, None]
        hidden, cache = apply(model.extend, params, embedded, state.positions[:, None], segment_ids, state.cache)
        new = _sample(model, params, hidden[:, 0], state.keys, state.num_tokens, settings, spec)
        return DecodeState(
            tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, new, state.num_tokens, axis=1),
            num_tokens=state.num_tokens + 1,
            finished=state.finished | jnp.isin(new, settings.stop_tokens),
            cache=cache,
            positions=state.positions + 1,
            keys=state.keys,
        )

    return jax.lax.while_loop(is_running, step, state)


def check_guidance(guidance_scale: float) -> None:
    """Checks the range of a guidance scale.

    Raises:
      JanusError: The guidance scale is out of range.
    """
    if not 0 <= guidance_scale <= 1e6:
        raise JanusError(f"guidance_scale is {guidance_scale}; it must be from 0 to 1e6.")


def guide(outputs: Float[Array, "R*Q ..."], num_sequences: int, guidance_scale: Any) -> Float[Array, "R ..."]:
    """Returns the guided outputs u + s (c - u), where s is the guidance scale, or a weighted sum of Q outputs.

    Args:
      outputs: Alternately c, the output of a sequence, and u, the output of its unconditional sequence. Without
        unconditional sequences (Q = 1), the outputs are returned unchanged.
      num_sequences: R.
      guidance_scale: s; or the weights of the outputs of Q sequences, which replace c and u.
    """
    if jnp.ndim(guidance_scale):
        groups = outputs.reshape(num_sequences, -1, *outputs.shape[1:])
        return jnp.tensordot(jnp.asarray(guidance_scale, outputs.dtype), groups, axes=((0,), (1,)), precision="highest")
    if outputs.shape[0] == num_sequences:
        return outputs
    pairs = outputs.reshape(num_sequences, 2, *outputs.shape[1:])
    conditional, unconditional = pairs[:, 0], pairs[:, 1]
    return unconditional + guidance_scale * (conditional - unconditional)


def repeat_prompts(x: Shaped[Array, "P*Q ..."], num_prompts: int, per_prompt: int) -> Shaped[Array, "P*N*Q ..."]:
    """Repeats the Q entries of each of P prompts N times along the first axis."""
    total, tail = x.shape[0] * per_prompt, x.shape[1:]
    x = x.reshape(num_prompts, 1, x.shape[0] // num_prompts, *tail)
    return jnp.broadcast_to(x, (num_prompts, per_prompt, *x.shape[2:])).reshape(total, *tail)


def repeat_cache(cache: KVCache, num_prompts: int, per_prompt: int) -> KVCache:
    """Repeats the cache of each of P prompts N times, so that the model reads a prompt once for all its sequences."""

    def repeat(x: Array) -> Array:
        return repeat_prompts(x, num_prompts, per_prompt)

    layers = jax.tree.map(lambda kv: nn.with_logical_constraint(repeat(kv), KV_AXES), cache.layers)
    return KVCache(layers, repeat(cache.segment_ids), cache.length)


@functools.partial(jax.jit, static_argnames=("slots",))
def grow(state: DecodeState, slots: int) -> DecodeState:
    """Returns the state with a cache of `slots` slots, and with as many more entries in `tokens`."""
    tokens = jnp.pad(state.tokens, ((0, 0), (0, slots - state.cache.num_slots)))
    return state._replace(tokens=tokens, cache=grow_cache(state.cache, slots))


def _sample(
    model: Backbone, params: Params, hidden: Any, keys: Any, step: Any, settings: DecodeParams, spec: DecodeSpec
) -> Int[Array, " R"]:
    logits = guide(call_model(model, params, spec.logits, hidden), keys.shape[0], settings.guidance_scale)
    return sample_tokens(logits, keys, step, settings.sampling, spec.strategy)


def call_model(model: Backbone, params: Params, method: Callable[..., Array], x: Array) -> Array:
    """Calls one of the methods of `DecodeSpec`."""
    result: Array = model.apply({"params": params}, x, method=method)  # type: ignore[assignment]
    return result
