"""Lossless parallel decoding: Jacobi iteration over a window of token positions.

A token is sampled as the argmax of its logits plus Gumbel noise, and the noise depends only on the random key and the
position. The token at a position is therefore a function of the tokens before it. One pass over W positions samples W
tokens from drafts of the tokens before them. As long as each draft equals the token sampled at its position, the next
token is the one that sequential decoding samples, so it is accepted. The other samples are the drafts of the next pass
(speculative Jacobi decoding, arXiv 2410.01699; with shared noise, arXiv 2510.24211).

The tokens equal those of sequential decoding, except where rounding changes which token has the largest sum: a product
over several positions adds its terms in another order than a product over one.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from janus_jax.batch import Batch
from janus_jax.errors import JanusError
from janus_jax.generation.decode import DecodeParams, Decoder, DecodeSpec, DecodeState, call_model, grow, guide
from janus_jax.generation.padding import CACHE_STEP
from janus_jax.generation.sampling import sample_tokens
from janus_jax.models.backbone import Backbone, Params, apply
from janus_jax.models.target_platform import current_platform
from janus_jax.sharding import num_data_shards

ParallelWindow = int | Literal["auto"]
"""Number of token positions per pass. 0 or 1: sequential decoding. "auto": `auto_window`."""

MAX_WINDOW = 256
"""Largest window."""

_AUTO_ROWS = {"gpu": 128, "tpu": 128, "cpu": 4}
"""Number of positions, over all sequences of a device, up to which a pass takes about as long as one over few.

On accelerators reading the weights takes longer than the products up to about 200 positions (H200: 206, v5e: 240). On
a CPU the figure is measured (docs/performance.md).
"""

_AUTO_MAX_WINDOW = 32


def check_window(window: ParallelWindow) -> None:
    """Checks a window.

    Raises:
      JanusError: The window is neither "auto" nor a whole number from 0 to `MAX_WINDOW`.
    """
    if window != "auto" and not (isinstance(window, int) and 0 <= window <= MAX_WINDOW):
        raise JanusError(f"parallel_window is {window!r}; it must be auto or a whole number from 0 to {MAX_WINDOW}.")


def auto_window(num_sequences: int) -> int:
    """Returns a window for the current platform and mesh.

    Args:
      num_sequences: Number of sequences that the model reads, unconditional ones included.
    """
    per_device = -(-num_sequences // num_data_shards(jax.sharding.get_abstract_mesh()))
    window = min(_AUTO_MAX_WINDOW, _AUTO_ROWS.get(current_platform(), 0) // per_device)
    return window if window > 1 else 0


class ParallelDecoder(Decoder):
    """Generates a fixed number of tokens for each sequence, several tokens per pass.

    Attributes:
      num_tokens: Number of tokens that every sequence has; some have more.
      num_passes: Number of passes of the model after prefill.
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
        total: int,
        window: int,
    ) -> None:
        """Runs the model on the prompts and samples the first token of each sequence.

        Args:
          model, params, prompts, keys, spec, settings: See `Decoder`. There are no stop tokens.
          total: Number of tokens to generate.
          window: Number of positions per pass, at least 2.
        """
        # The last pass may begin at the last token.
        max_slots = prompts.shape[1] + total - 1 + window
        super().__init__(model, params, prompts, keys, spec=spec, settings=settings, max_slots=max_slots)
        self._window, self._total = window, total
        self.num_passes = 0
        self.state = begin_windows(self.state, window)

    def advance(self, max_steps: int) -> None:
        """Runs passes until every sequence has at least `max_steps` more tokens.

        Stops earlier when the next pass needs a larger cache.
        """
        slots = self.state.cache.num_slots
        if int(self.state.cache.length.max()) + self._window > slots:
            self.state = grow(self.state, min(slots + CACHE_STEP, self._max_slots))
        goal = min(self.num_tokens + max_steps, self._total)
        self.state, passes = decode_windows(
            self._model,
            self._params,
            self.state,
            self._settings,
            (goal, self._total),
            spec=self._spec,
            window=self._window,
        )
        self.num_tokens = int(self.state.num_tokens.min())
        self.num_passes += int(passes)


@functools.partial(jax.jit, static_argnames=("window",))
def begin_windows(state: DecodeState, window: int) -> DecodeState:
    """Returns the state after prefill with lengths for each sequence, and with drafts of the next tokens."""
    (num_sequences, _), per_sequence = state.tokens.shape, state.positions.shape[0] // state.tokens.shape[0]
    # With a single length, XLA updates the cache by a slice instead of a scatter.
    lengths = () if num_sequences == 1 else (num_sequences * per_sequence,)
    first = state.tokens[:, :1]
    # A pass writes its samples and the drafts after them, which end before `window` entries after the cache's slots.
    drafts = jnp.broadcast_to(first, (num_sequences, state.cache.num_slots + window))
    return state._replace(
        tokens=drafts,
        num_tokens=jnp.broadcast_to(state.num_tokens, (num_sequences,)),
        cache=state.cache._replace(length=jnp.broadcast_to(state.cache.length, lengths)),
    )


@functools.partial(jax.jit, static_argnames=("model", "spec", "window"), donate_argnames=("state",))
def decode_windows(
    model: Backbone,
    params: Params,
    state: DecodeState,
    settings: DecodeParams,
    goals: tuple[Any, Any],
    *,
    spec: DecodeSpec,
    window: int,
) -> tuple[DecodeState, Int[Array, ""]]:
    """Runs passes over `window` positions while a sequence needs tokens and the cache has slots for the next pass.

    Args:
      state: Tokens, then drafts. Each sequence has its own number of tokens.
      goals: Number of tokens that every sequence must have, and the number at which a sequence ends. Both are dynamic
        arguments.

    Returns:
      The new state, and the number of passes.
    """
    goal, total = goals
    num_sequences = state.tokens.shape[0]
    per_sequence = state.positions.shape[0] // num_sequences
    offsets = jnp.arange(window)

    def is_running(carry: tuple[DecodeState, Array]) -> Bool[Array, ""]:
        state, _ = carry
        return (state.num_tokens.min() < goal) & (state.cache.length.max() + window <= state.cache.num_slots)

    def run_pass(carry: tuple[DecodeState, Array]) -> tuple[DecodeState, Array]:
        state, passes = carry
        # The last accepted token, then drafts.
        inputs = _read(state.tokens, state.num_tokens - 1, window)
        embedded = call_model(model, params, spec.embed, jnp.repeat(inputs, per_sequence, axis=0))
        positions = state.positions[:, None] + offsets
        hidden, cache = apply(model.extend, params, embedded, positions, jnp.ones_like(positions), state.cache)
        logits = guide(call_model(model, params, spec.logits, hidden), num_sequences, settings.guidance_scale)
        steps = state.num_tokens[:, None] + offsets
        samples = _sample(logits, state.keys, steps, settings, spec)
        # A sequence that has all tokens accepts none.
        accepted = jnp.minimum(_count_accepted(samples, inputs[:, 1:]), total - state.num_tokens)
        # The positions after the window have no logits yet. The last ones, with the noise of each position, give better
        # drafts than the token on the left or the token above (docs/performance.md).
        last = jnp.repeat(logits[:, -1:], window - 1, axis=1)
        drafts = _sample(last, state.keys, steps[:, 1:] + (window - 1), settings, spec)
        by_input = jnp.repeat(accepted, per_sequence)
        # The slots of rejected positions are beyond the new length, so later passes overwrite them.
        length = state.cache.length + (by_input if state.cache.length.ndim else accepted[0])
        state = state._replace(
            tokens=_write(state.tokens, jnp.concatenate([samples, drafts], axis=1), state.num_tokens),
            num_tokens=state.num_tokens + accepted,
            cache=cache._replace(length=length),
            positions=state.positions + by_input,
        )
        return state, passes + 1

    return jax.lax.while_loop(is_running, run_pass, (state, jnp.zeros((), jnp.int32)))


def _count_accepted(samples: Int[Array, "R W"], drafts: Int[Array, "R W-1"]) -> Int[Array, " R"]:
    """Returns the number of samples up to the first one whose draft differs, that one included."""
    matches = samples[:, :-1] == drafts
    return 1 + jnp.cumprod(matches.astype(jnp.int32), axis=1).sum(axis=1)


def _sample(
    logits: Float[Array, "R W V"],
    keys: Key[Array, " R"],
    steps: Int[Array, "R W"],
    settings: DecodeParams,
    spec: DecodeSpec,
) -> Int[Array, "R W"]:
    """Samples a token from each of the logits, with the noise of its own step."""
    num_sequences, window, vocab_size = logits.shape
    tokens = sample_tokens(
        logits.reshape(-1, vocab_size), jnp.repeat(keys, window), steps.reshape(-1), settings.sampling, spec.strategy
    )
    return tokens.reshape(num_sequences, window)


def _read(tokens: Int[Array, "R T"], starts: Int[Array, " R"], count: int) -> Int[Array, "R W"]:
    """Returns `count` tokens of each sequence, from its own start on."""
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, count))(tokens, starts)


def _write(tokens: Int[Array, "R T"], new: Int[Array, "R W"], starts: Int[Array, " R"]) -> Int[Array, "R T"]:
    """Returns the tokens with new ones of each sequence, written from its own start on."""
    write = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda row, values, start: write(row, values, start, 0))(tokens, new, starts)
