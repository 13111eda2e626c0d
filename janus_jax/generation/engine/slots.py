"""Device programs of the engine: prefill, insertion into slots, and decode steps of all slots together.

A slot is one row of a KV cache of R rows. Each row has its own length, so that requests of any age decode together. The
host owns all numbers of the rows (`Rows`); the device holds the cache and the hidden state of each row's last position.

A decode step samples a token from the hidden states, then runs the model on it. Rows of text use the text head and rows
of image tokens the image head. A step without rows of one kind skips its head.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from janus_jax.batch import Batch
from janus_jax.generation.sampling import INVALID_TOKEN, SamplingParams, sample_each
from janus_jax.models.backbone import Backbone, Params, apply, to_pixels
from janus_jax.models.janus import Janus
from janus_jax.models.llama import KVCache, LayerCache

_KV_AXES = ("batch", "kv_heads", "length", "head_dim")

NO_TOKEN = -2
"""Entry of the decoded tokens at steps in which a row does not run."""


class Slots(NamedTuple):
    """R rows of keys and values on the device.

    Attributes:
      layers: Keys and values of S positions per row.
      hidden: Hidden state of the last position of each row, from which the next token is sampled.
    """

    layers: tuple[LayerCache, ...]
    hidden: Float[Array, "R D"]

    @property
    def shape(self) -> tuple[int, int]:
        """R and S."""
        key, _ = self.layers[0]
        return key.shape[0], key.shape[2]


class Rows(NamedTuple):
    """Numbers of the R rows during one call of `decode`, as numpy arrays.

    A group of rows generates one sequence with guidance. Its first row samples the tokens, and all its rows read them.

    Attributes:
      lengths: Number of positions in the cache.
      left: Number of tokens that the row still needs; 0 for rows that do not run.
      steps: Index of the next token in its sequence.
      is_image: Whether the row generates image tokens.
      leaders: First row of the row's group.
      others: The second and the third row of the group; the row itself if there are none.
      guidance_scale: s of `decode.guide` for groups with `is_pair`.
      is_pair: Whether the guided logits are u + s (c - u), where u are the logits of the third row in `others`.
      weights: Otherwise, the weights of the logits of the group's three rows.
      sampling: Sampling settings.
      keys: Data of the random keys.
      stop_tokens: Tokens after which a row stops; -2 for none.
    """

    lengths: Int[np.ndarray, " R"]
    left: Int[np.ndarray, " R"]
    steps: Int[np.ndarray, " R"]
    is_image: Bool[np.ndarray, " R"]
    leaders: Int[np.ndarray, " R"]
    others: Int[np.ndarray, "R 2"]
    guidance_scale: Float[np.ndarray, " R"]
    is_pair: Bool[np.ndarray, " R"]
    weights: Float[np.ndarray, "R 3"]
    sampling: SamplingParams
    keys: UInt32[np.ndarray, "R K"]
    stop_tokens: Int[np.ndarray, "R T"]

    @classmethod
    def idle(cls, num_rows: int, key_size: int) -> "Rows":
        """Returns rows that do not run."""
        zeros = functools.partial(np.zeros, num_rows)
        own = np.arange(num_rows, dtype=np.int32)
        return cls(
            lengths=zeros(np.int32),
            left=zeros(np.int32),
            steps=zeros(np.int32),
            is_image=zeros(bool),
            leaders=own,
            others=np.stack([own, own], axis=1),
            guidance_scale=zeros(np.float32),
            is_pair=zeros(bool),
            weights=np.tile(np.array([1, 0, 0], np.float32), (num_rows, 1)),
            sampling=SamplingParams(zeros(np.float32), zeros(np.int32), np.ones(num_rows, np.float32)),
            keys=np.zeros((num_rows, key_size), np.uint32),
            stop_tokens=np.full((num_rows, 2), NO_TOKEN, np.int32),
        )


class Prefilled(NamedTuple):
    """Keys and values of P prompts of at most L tokens, and the hidden state of the last token of each."""

    layers: tuple[LayerCache, ...]
    hidden: Float[Array, "P D"]


def _constrain(slots: Slots) -> Slots:
    layers = jax.tree.map(lambda kv: nn.with_logical_constraint(kv, _KV_AXES), slots.layers)
    return Slots(layers, nn.with_logical_constraint(slots.hidden, ("batch", "activation_embed")))


@functools.partial(jax.jit, static_argnames=("model", "num_rows", "length"))
def empty_slots(model: Backbone, num_rows: int, length: int) -> Slots:
    """Returns `num_rows` empty rows of `length` slots."""
    c, dtype = model.config.llm, model.execution.dtype
    shape = (num_rows, c.num_kv_heads, length, c.head_dim)
    layers = tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(c.depth))
    return _constrain(Slots(layers, jnp.zeros((num_rows, c.width), dtype)))


@functools.partial(jax.jit, static_argnames=("model",))
def prefill(model: Backbone, params: Params, prompts: Batch, lengths: Int[Any, " P"]) -> Prefilled:
    """Runs the model on P prompts with padding on the right."""
    hidden, cache = apply(model.prefill, params, prompts, prompts.shape[1])
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return Prefilled(cache.layers, last)


@functools.partial(jax.jit, static_argnames=("num_rows", "length"))
def keep_prefix(prompts: Prefilled, index: int, num_tokens: int, *, num_rows: int, length: int) -> Slots:
    """Returns rows that all contain the first tokens of one prompt, without hidden states.

    Args:
      prompts: The prompts.
      index: Index of the prompt.
      num_tokens: Number of tokens; a dynamic argument.
      num_rows: Number of rows.
      length: Number of slots of a row.
    """

    def copy(kv: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(kv, index)[:, :, :length]
        # Later values may not be finite, see `clear`.
        row = jnp.where(jnp.arange(row.shape[2])[:, None] < num_tokens, row, 0)
        return jnp.repeat(jnp.pad(row, ((0, 0), (0, 0), (0, length - row.shape[2]), (0, 0))), num_rows, axis=0)

    hidden = jnp.zeros((num_rows, prompts.hidden.shape[1]), prompts.hidden.dtype)
    return _constrain(Slots(jax.tree.map(copy, prompts.layers), hidden))


@functools.partial(jax.jit, static_argnames=("model",))
def extend(model: Backbone, params: Params, slots: Slots, tokens: Batch, start: int) -> Slots:
    """Runs the model on further tokens of rows. It does not donate the rows, because they may be a kept prefix.

    Args:
      model: The network.
      params: Parameters of the network.
      slots: The rows, R rows of S slots.
      tokens: T tokens for each of the R rows.
      start: Position of the first token, at most S - T; a dynamic argument.
    """
    cache = KVCache(slots.layers, jnp.ones(slots.shape, jnp.int32), jnp.asarray(start))
    embedded = apply(model.embed, params, tokens)
    hidden, cache = apply(model.extend, params, embedded, tokens.positions, tokens.segment_ids, cache)
    return _constrain(Slots(cache.layers, hidden[:, -1]))


@functools.partial(jax.jit, donate_argnames=("slots",))
def insert(slots: Slots, prompts: Prefilled, sources: Int[Any, " T"], targets: Int[Any, " T"]) -> Slots:
    """Copies prompts into rows.

    Args:
      slots: The rows.
      prompts: The prompts.
      sources: Index of the prompt of each copy.
      targets: Row of each copy. Copies to rows from R on are dropped.
    """
    length = min(slots.shape[1], prompts.layers[0][0].shape[2])
    layers = jax.tree.map(
        lambda kv, new: kv.at[targets, :, :length].set(new[sources, :, :length], mode="drop"),
        slots.layers,
        prompts.layers,
    )
    return _constrain(Slots(layers, slots.hidden.at[targets].set(prompts.hidden[sources], mode="drop")))


@functools.partial(jax.jit, donate_argnames=("slots",))
def clear(slots: Slots, rows: Bool[Any, " R"]) -> Slots:
    """Sets rows to zero. Values that are not finite would reach later requests, although masks exclude them."""
    return jax.tree.map(lambda x: jnp.where(rows.reshape(-1, *(1,) * (x.ndim - 1)), 0, x), slots)


@functools.partial(jax.jit, static_argnames=("length",))
def resize(slots: Slots, sources: Int[Any, " R2"], length: int) -> Slots:
    """Returns other rows with `length` slots.

    Args:
      slots: The rows.
      sources: Row to copy to each new row. Rows from R on are empty.
      length: Number of slots of the new rows.
    """
    kept = min(length, slots.shape[1])

    def copy(kv: Array) -> Array:
        rows = jnp.take(kv[:, :, :kept], sources, axis=0, mode="fill", fill_value=0)
        return jnp.pad(rows, ((0, 0), (0, 0), (0, length - kept), (0, 0)))

    hidden = jnp.take(slots.hidden, sources, axis=0, mode="fill", fill_value=0)
    return _constrain(Slots(jax.tree.map(copy, slots.layers), hidden))


@functools.partial(jax.jit, static_argnames=("model", "max_steps"), donate_argnames=("slots",))
def decode(
    model: Backbone, params: Params, slots: Slots, rows: Rows, steps: int, *, max_steps: int
) -> tuple[Slots, Int[Array, "R M"]]:
    """Runs up to `steps` decode steps, fewer if no row needs more tokens.

    Args:
      model: The network.
      params: Parameters of the network.
      slots: The rows.
      rows: Numbers of the rows.
      steps: Number of steps, at most `max_steps`; a dynamic argument.
      max_steps: Static M.

    Returns:
      The rows, and the tokens that each row has sampled: `NO_TOKEN` from the step on in which a row does not run,
      `INVALID_TOKEN` if its logits were NaN, after which it does not run.
    """
    num_rows = slots.shape[0]
    keys = jax.random.wrap_key_data(jnp.asarray(rows.keys))
    segment_ids = jnp.ones(slots.shape, jnp.int32)

    class State(NamedTuple):
        count: Any
        slots: Slots
        lengths: Any
        left: Any
        tokens: Any

    def is_running(state: State) -> Bool[Array, ""]:
        return (state.count < steps) & (state.left > 0).any()

    def step(state: State) -> State:
        runs = state.left > 0
        new = _sample(model, params, state.slots.hidden, rows, keys, state.count, runs)[rows.leaders]
        ends = (new[:, None] == rows.stop_tokens).any(axis=1) | (new == INVALID_TOKEN)
        embedded = _embed(model, params, new, rows.is_image, runs)
        cache = KVCache(state.slots.layers, segment_ids, state.lengths)
        ones = jnp.ones((num_rows, 1), jnp.int32)
        hidden, cache = apply(model.extend, params, embedded[:, None], state.lengths[:, None], ones, cache)
        return State(
            count=state.count + 1,
            slots=_constrain(Slots(cache.layers, jnp.where(runs[:, None], hidden[:, 0], state.slots.hidden))),
            lengths=state.lengths + runs,
            left=jnp.where(runs, jnp.where(ends, 0, state.left - 1), 0),
            tokens=state.tokens.at[:, state.count].set(jnp.where(runs, new, NO_TOKEN)),
        )

    tokens = jnp.full((num_rows, max_steps), NO_TOKEN, jnp.int32)
    first = State(jnp.zeros((), jnp.int32), slots, jnp.asarray(rows.lengths), jnp.asarray(rows.left), tokens)
    last = jax.lax.while_loop(is_running, step, first)
    return last.slots, last.tokens


def _sample(
    model: Backbone, params: Params, hidden: Array, rows: Rows, keys: Array, count: Array, runs: Array
) -> Int[Array, " R"]:
    """Samples the next token of each row; the result counts in the leaders of groups."""
    steps = jnp.asarray(rows.steps + count)
    is_leader = rows.leaders == jnp.arange(len(rows.leaders))

    def sample(logits: Array, chosen: Array) -> Array:
        # Other rows are greedy, which costs nothing.
        temperature = jnp.where(chosen & is_leader, rows.sampling.temperature, 0)
        return sample_each(logits, keys, steps, rows.sampling._replace(temperature=temperature))

    def skip() -> Array:
        return jnp.zeros(len(rows.leaders), jnp.int32)

    def text() -> Array:
        return sample(apply(model.text_logits, params, hidden), runs & ~rows.is_image)

    if not isinstance(model, Janus):
        return text()

    def image() -> Array:
        return sample(_guide(apply(model.image_logits, params, hidden), rows), runs & rows.is_image)

    text_tokens = jax.lax.cond((runs & ~rows.is_image).any(), text, skip)
    image_tokens = jax.lax.cond((runs & rows.is_image).any(), image, skip)
    return jnp.where(rows.is_image, image_tokens, text_tokens)


def _guide(logits: Float[Array, "R V"], rows: Rows) -> Float[Array, "R V"]:
    """Returns the guided logits of each row. See `decode.guide`."""
    second, third = logits[rows.others[:, 0]], logits[rows.others[:, 1]]
    pairs = third + rows.guidance_scale[:, None] * (logits - third)
    weighted = rows.weights[:, :1] * logits + rows.weights[:, 1:2] * second + rows.weights[:, 2:] * third
    return jnp.where(rows.is_pair[:, None], pairs, weighted)


def _embed(
    model: Backbone, params: Params, tokens: Int[Array, " R"], is_image: Any, runs: Array
) -> Float[Array, "R D"]:
    tokens = jnp.maximum(tokens, 0)
    embedded = apply(model.embed_text, params, jnp.where(is_image, 0, tokens))
    if not isinstance(model, Janus):
        return embedded
    images = jax.lax.cond(
        (is_image & runs).any(),
        lambda: apply(model.embed_image_tokens, params, jnp.where(is_image, tokens, 0)).astype(embedded.dtype),
        lambda: jnp.zeros_like(embedded),
    )
    return jnp.where(is_image[:, None], images, embedded)


@functools.partial(jax.jit, static_argnames=("model",))
def encode_input_images(model: Backbone, params: Params, images: UInt8[Any, "M H W 3"]) -> Float[Array, "M N D"]:
    """Returns the embeddings of input images."""
    return apply(model.embed_input_images, params, to_pixels(images))
