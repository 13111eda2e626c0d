"""Writing text: id after id, in loops on the device of a few ids each, between which it can be streamed."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from janus_jax.batch import Batch
from janus_jax.generation.image_sampler import KV_AXES
from janus_jax.generation.padding import CACHE_STEP, round_up
from janus_jax.generation.sampling import SamplingConfig, SamplingParams, Strategy, check_sampled, draw
from janus_jax.models.backbone import Backbone, Params, apply
from janus_jax.models.llama import KVCache, grow_cache
from janus_jax.sharding import on_host


class TextDecodeState(NamedTuple):
    """B answers in the making.

    Attributes:
      last: the id written last, not yet read by the model.
      written: number of ids written, the same for all rows.
      finished: rows that have written a stop id; what they write from there on means nothing.
      cache: of the places read.
      positions: of each row's next place.
      keys: one a row.
    """

    last: Int[Array, " B"]
    written: Int[Array, ""]
    finished: Bool[Array, " B"]
    cache: KVCache
    positions: Int[Array, " B"]
    keys: Key[Array, " B"]


def generate_text(
    model: Backbone,
    params: Params,
    prompts: Batch,
    keys: Key[Array, " B"],
    sampling: SamplingConfig,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    chunk: int = 16,
    is_finished: Callable[[Int[np.ndarray, "B T"]], Bool[np.ndarray, " B"]] | None = None,
) -> Iterator[Int[np.ndarray, "B t"]]:
    """Yields the next ids of all rows, up to `chunk` at a time, until every row has stopped.

    What a row yields after its first stop id means nothing.

    Args:
      prompts: left-padded prompts.
      keys: one a row.
      stop_ids: ids that end a row; the one that did is yielded.
      max_new_tokens: ids a row at most.
      is_finished: called with all ids so far after every chunk; tells which rows need go no further (a stop string,
        which only the text can show).

    Raises:
      JanusError: the model's logits are not numbers.
    """
    length = prompts.shape[1]
    slots = round_up(length + 1, CACHE_STEP)
    knobs, strategy = sampling.params, sampling.strategy
    stops = jnp.asarray(list(stop_ids), jnp.int32)
    state = start(model, params, prompts, keys, knobs, stops, slots, strategy)
    ids = new_ids = on_host(state.last)[:, None]
    while True:
        check_sampled(new_ids)
        written = ids.shape[1]
        if is_finished is not None:
            state = state._replace(finished=state.finished | jnp.asarray(is_finished(ids)))
        yield new_ids
        if written >= max_new_tokens or on_host(state.finished).all():
            return
        if length + written > slots:
            slots += CACHE_STEP
            state = _grow(state, slots)
        steps = min(chunk, max_new_tokens - written, slots - (length + written - 1))
        state, buffer = advance(model, params, state, knobs, stops, steps, chunk, strategy)
        new_ids = on_host(buffer)[:, : int(state.written) - written]
        ids = np.concatenate([ids, new_ids], axis=1)


@functools.partial(jax.jit, static_argnames=("model", "slots", "strategy"))
def start(
    model: Backbone,
    params: Params,
    prompts: Batch,
    keys: Key[Array, " B"],
    knobs: SamplingParams,
    stop_ids: Int[Array, " S"],
    slots: int,
    strategy: Strategy,
) -> TextDecodeState:
    """Runs the prompts and writes the first id of each row; the cache has room for `slots` places."""
    hidden, cache = apply(model.prefill, params, prompts, slots)
    cache = cache._replace(layers=jax.tree.map(lambda kv: nn.with_logical_constraint(kv, KV_AXES), cache.layers))
    first = _draw_ids(model, params, hidden[:, -1], keys, 0, knobs, strategy)
    finished = jnp.isin(first, stop_ids)
    return TextDecodeState(first, jnp.asarray(1, jnp.int32), finished, cache, prompts.positions[:, -1] + 1, keys)


@functools.partial(jax.jit, static_argnames=("model", "chunk", "strategy"), donate_argnames=("state",))
def advance(
    model: Backbone,
    params: Params,
    state: TextDecodeState,
    knobs: SamplingParams,
    stop_ids: Int[Array, " S"],
    steps: int,
    chunk: int,
    strategy: Strategy,
) -> tuple[TextDecodeState, Int[Array, "B chunk"]]:
    """Writes `steps` <= `chunk` more ids a row, fewer where all rows stop before."""
    start = state.written
    buffer = jnp.zeros((state.last.shape[0], chunk), jnp.int32)

    def more(carry: tuple[TextDecodeState, Array]) -> Bool[Array, ""]:
        state, _ = carry
        return (state.written - start < steps) & ~state.finished.all()

    def step(carry: tuple[TextDecodeState, Array]) -> tuple[TextDecodeState, Array]:
        state, buffer = carry
        x = apply(model.embed_text, params, state.last[:, None])
        places = jnp.ones_like(state.positions)[:, None]
        hidden, cache = apply(model.extend, params, x, state.positions[:, None], places, state.cache)
        new = _draw_ids(model, params, hidden[:, 0], state.keys, state.written, knobs, strategy)
        buffer = jax.lax.dynamic_update_index_in_dim(buffer, new, state.written - start, axis=1)
        finished = state.finished | jnp.isin(new, stop_ids)
        return TextDecodeState(new, state.written + 1, finished, cache, state.positions + 1, state.keys), buffer

    return jax.lax.while_loop(more, step, (state, buffer))


@functools.partial(jax.jit, static_argnames=("slots",))
def _grow(state: TextDecodeState, slots: int) -> TextDecodeState:
    return state._replace(cache=grow_cache(state.cache, slots))


def _draw_ids(
    model: Backbone,
    params: Params,
    hidden: Float[Array, "B D"],
    keys: Key[Array, " B"],
    step: Int[Array, ""] | int,
    knobs: SamplingParams,
    strategy: Strategy,
) -> Int[Array, " B"]:
    return draw(apply(model.text_logits, params, hidden), keys, step, knobs, strategy)
