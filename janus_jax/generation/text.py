"""Generates text a few tokens at a time, so that it can be streamed."""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Int, Key

from janus_jax.batch import Batch
from janus_jax.errors import ContextExceeded, JanusError
from janus_jax.generation.decode import DecodeParams, Decoder, DecodeSpec
from janus_jax.generation.sampling import SamplingConfig, check_sampled
from janus_jax.models.backbone import Backbone, Params
from janus_jax.sharding import to_host

DEFAULT_NEW_TOKENS = 512
"""Maximum number of tokens of an answer, if the caller gives none."""


def answer_limits(prompt_lengths: Sequence[int], max_new_tokens: int | None, context: int) -> list[int]:
    """Returns the maximum number of tokens of the answer to each prompt.

    An answer ends where the model's context ends. If that is before `max_new_tokens`, one warning is logged.

    Args:
      prompt_lengths: Lengths of the prompts in tokens.
      max_new_tokens: Maximum number of tokens that the caller asks for. None: `DEFAULT_NEW_TOKENS`, without a warning.
      context: Number of positions of the model.

    Raises:
      JanusError: `max_new_tokens` is not positive.
      ContextExceeded: A prompt leaves no room for an answer.
    """
    wanted = DEFAULT_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    if not isinstance(wanted, int) or wanted < 1:
        raise JanusError(f"max_new_tokens is {wanted!r}; it must be a positive whole number.")
    longest = max(prompt_lengths)
    if longest >= context:
        raise ContextExceeded(
            f"The prompt has {longest} tokens, which leaves no room for an answer in the model's context of {context}; "
            f"shorten the prompt or the conversation."
        )
    if max_new_tokens is not None and longest + wanted > context:
        _warn_of_shorter_answers(wanted, context)
    return [min(wanted, context - length) for length in prompt_lengths]


@functools.cache
def _warn_of_shorter_answers(wanted: int, context: int) -> None:
    # Cached: one warning per process, not one per batch of a benchmark or per turn of a chat.
    logging.warning(
        "Prompt and max_new_tokens = %d together exceed the model's context of %d tokens; answers end where the "
        "context ends.",
        wanted,
        context,
    )


def generate_text(
    model: Backbone,
    params: Params,
    prompts: Batch,
    keys: Key[Array, " B"],
    sampling: SamplingConfig,
    *,
    stop_tokens: Sequence[int],
    max_new_tokens: int,
    chunk: int = 16,
    is_finished: Callable[[Int[np.ndarray, "B T"]], Bool[np.ndarray, " B"]] | None = None,
) -> Iterator[Int[np.ndarray, "B t"]]:
    """Yields the next tokens of all sequences, up to `chunk` at a time, until every sequence is finished.

    The tokens of a sequence after its first stop token are meaningless.

    Args:
      model: The network.
      params: Parameters of the network.
      prompts: Left-padded prompts.
      keys: Random key of each sequence.
      sampling: Settings for sampling one token.
      stop_tokens: Tokens that finish a sequence. They are yielded.
      max_new_tokens: Maximum number of tokens per sequence.
      chunk: Maximum number of tokens to yield at a time.
      is_finished: Called after every chunk with all tokens so far. Returns True for each sequence that needs no more
        tokens, for example because its text contains a stop string.

    Raises:
      JanusError: The logits are NaN.
    """
    spec = DecodeSpec(Backbone.embed_text, Backbone.text_logits, sampling.strategy)
    settings = DecodeParams(sampling.params, stop_tokens=np.array(stop_tokens, np.int32))
    decoder = Decoder(model, params, prompts, keys[:, None], spec=spec, settings=settings)
    seen = 0
    while True:
        tokens = to_host(decoder.state.tokens)[:, : int(decoder.state.num_tokens)]
        new_tokens, seen = tokens[:, seen:], tokens.shape[1]
        check_sampled(new_tokens)
        if is_finished is not None:
            decoder.finish(is_finished(tokens))
        yield new_tokens
        if seen >= max_new_tokens or to_host(decoder.state.finished).all():
            return
        decoder.advance(min(chunk, max_new_tokens - seen))
