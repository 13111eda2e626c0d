"""Answers in which the model generates images: text and image tokens in one context.

When the model writes begin-of-image, image tokens are sampled with guidance, as in text-to-image. The image then stays
in the context in the layout of training, and the model continues with text. The keys and values of the conversation are
computed once; no token is read again after an image.
"""

import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key
from PIL import Image

from janus_jax.config import JanusConfig, ModelConfig
from janus_jax.errors import ContextExceeded, JanusError
from janus_jax.generation.answers import AnswerDecoder
from janus_jax.generation.context import Context, ContextReader, Ids, interleave_caches, separate_caches
from janus_jax.generation.decode import ContextEnd, DecodeParams, DecodeSpec, DecodeState, begin, decode, grow
from janus_jax.generation.image_sampler import check_settings
from janus_jax.generation.image_tokens import TokenSampler, images_to_tokens, tokens_to_images
from janus_jax.generation.padding import CACHE_STEP
from janus_jax.generation.parallel_decode import auto_window, begin_windows, decode_windows
from janus_jax.generation.sampling import SamplingConfig, check_sampled, sampling_keys
from janus_jax.generation.text import answer_limits
from janus_jax.models.janus import Janus
from janus_jax.processing import (
    ConversationPrompt,
    ImageWithTokens,
    TokenSequence,
    Unconditional,
    check_unconditional,
    generated_image_length,
    generated_image_piece,
    tail,
    text_piece,
    unconditional_conversation,
)
from janus_jax.sharding import to_host, use_mesh


@dataclass(frozen=True)
class ConversationImageSampler(TokenSampler):
    """Image sampler of conversations.

    Attributes:
      unconditional: Part of the conversation that padding replaces in the unconditional sequence of an image. "all":
        all tokens but the first, as in text-to-image. "message": the text of the user's last message; earlier messages
        and all images are kept, so that guidance strengthens an instruction about an earlier image.
      max_images: Number of images after which an answer ends at the next begin-of-image.
    """

    unconditional: Unconditional = "all"
    max_images: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unconditional(self.unconditional)
        if not isinstance(self.max_images, int) or self.max_images < 0:
            raise JanusError(f"max_images is {self.max_images!r}; it must be a whole number, 0 or more.")


def make_conversation_image_sampler(config: ModelConfig, **settings: Any) -> ConversationImageSampler:
    """Returns the image sampler of conversations.

    Raises:
      JanusError: The model is a JanusFlow, there is no such setting, or a setting is out of range.
    """
    if not isinstance(config, JanusConfig):
        raise JanusError(
            f"{config.name} cannot generate images in a conversation: JanusFlow reads no images as latents in its "
            f"context; use a Janus or Janus-Pro model, or `generate`."
        )
    check_settings(
        "The image sampler of conversations", [setting.name for setting in fields(ConversationImageSampler)], settings
    )
    return ConversationImageSampler(**settings)


@dataclass(frozen=True)
class AnswerOptions:
    """Options of an answer.

    Attributes:
      text: Sampling of text.
      image_sampling: Sampling of images.
      seed: Seed. Part p of an answer (text, image, text, ...) has the random key of prompt p (`sampling_keys`).
      max_new_tokens: Maximum number of text tokens. None: `DEFAULT_NEW_TOKENS`.
      stop: Strings that end the answer.
      chunk: Maximum number of text tokens that are decoded at a time.
    """

    text: SamplingConfig
    image_sampling: ConversationImageSampler
    seed: int = 0
    max_new_tokens: int | None = None
    stop: str | Sequence[str] = ()
    chunk: int = 4


class InterleavedAnswer:
    """Generates one answer. Iterating yields pieces of text, and images when they are complete.

    Attributes:
      text_tokens: Text tokens of each part of the answer so far, begin-of-image and end-of-sentence included.
    """

    def __init__(self, reader: ContextReader, prompt: ConversationPrompt, options: AnswerOptions) -> None:
        """Checks the prompt.

        Raises:
          JanusError: The prompt leaves no room for an answer in the model's context.
        """
        self.text_tokens: list[Int[np.ndarray, " T"]] = []
        self._reader, self._prompt, self._options = reader, prompt, options
        self._special = reader.processor.tokenizer.special
        (self._left,) = answer_limits([len(prompt.sequence)], options.max_new_tokens, reader.max_positions)
        # Raises for an invalid seed.
        self._keys(0)

    def __iter__(self) -> Iterator[str | ImageWithTokens]:
        # The mesh is not in use at a `yield`, so that it does not affect the caller's code.
        with use_mesh(self._reader.mesh):
            end = self._read_prompt()
        for number in itertools.count():
            begins_image = yield from self._write(end, self._keys(2 * number))
            if not begins_image or number == self._options.image_sampling.max_images:
                return
            with use_mesh(self._reader.mesh):
                image = self._generate_image(self._keys(2 * number + 1))
            yield image
            if self._left <= 0:
                return
            with use_mesh(self._reader.mesh):
                end = self._read_image(image)

    def _keys(self, part: int) -> Key[Array, " R"]:
        return jnp.repeat(sampling_keys(self._options.seed, part, range(1)), self._reader.copies)

    def _read_prompt(self) -> ContextEnd:
        sequence, reader = self._prompt.sequence, self._reader
        ids = np.zeros((sequence.num_target_images, reader.processor.num_gen_tokens), np.int32)
        for index, tokens in enumerate(self._prompt.image_tokens):
            if tokens is None:
                image = sequence.gen_images[index : index + 1]
                tokens = to_host(images_to_tokens(reader.model, reader.params, image))[0]
            ids[index] = tokens
        self._context, end = reader.read_prompt(sequence, ids)
        self._unconditional = _Unconditional(reader, self._prompt, ids, self._options.image_sampling.unconditional)
        return end

    def _write(self, end: ContextEnd, keys: Key[Array, " R"]) -> Generator[str, None, bool]:
        """Yields text up to its end or a begin-of-image. Returns whether an image follows."""
        reader, options = self._reader, self._options
        spec = DecodeSpec(Janus.embed_text, Janus.text_logits, options.text.strategy)
        stops = np.array([self._special.eos, self._special.begin_of_image], np.int32)
        settings = DecodeParams(options.text.params, stop_tokens=stops)
        limit = min(self._left, self._reader.max_positions - self._context.length)
        if limit < 1:
            return False
        decoder = AnswerDecoder(reader.processor.tokenizer, options.stop, limit)
        read = shown = 0
        with use_mesh(reader.mesh):
            state = begin(reader.model, reader.params, end, keys, settings, spec=spec)
        while True:
            tokens = to_host(state.tokens)[0, : int(state.num_tokens)]
            check_sampled(tokens)
            is_image = bool(tokens[-1] == self._special.begin_of_image)
            decoder.read(tokens[read : len(tokens) - is_image])
            begins_image, read = is_image and not decoder.finished, len(tokens)
            text = decoder.finish() if begins_image else decoder.text
            safe = decoder.safe_length
            if safe > shown:
                yield text[shown:safe]
                shown = safe
            if decoder.finished:
                break
            with use_mesh(reader.mesh):
                state = self._advance(state, read, min(options.chunk, limit - read), (settings, spec))
        self.text_tokens.append(tokens)
        self._left -= len(tokens)
        # All tokens but the last are in the cache.
        self._context = self._context._replace(cache=state.cache, length=self._context.length + len(tokens) - 1)
        self._unconditional.append_text(tokens[:-1])
        return begins_image

    def _advance(
        self, state: DecodeState, num_tokens: int, max_steps: int, how: tuple[DecodeParams, DecodeSpec]
    ) -> DecodeState:
        settings, spec = how
        used, slots = self._context.used + num_tokens - 1, state.cache.num_slots
        if used == slots:
            slots += CACHE_STEP
            state = grow(state, slots)
        steps = min(max_steps, slots - used)
        return decode(self._reader.model, self._reader.params, state, settings, steps, spec=spec)

    def _generate_image(self, keys: Key[Array, " R"]) -> ImageWithTokens:
        """Samples an image after begin-of-image, which is not in the cache yet."""
        reader, sampler, before = self._reader, self._options.image_sampling, self._context
        model, params, count = reader.model, reader.params, reader.processor.num_gen_tokens
        self._check_room()
        guided = sampler.guidance_scale != 1
        contexts = [before, self._unconditional.catch_up(before)] if guided else [before]
        num_sequences = reader.copies * len(contexts)
        window = auto_window(num_sequences) if sampler.parallel_window == "auto" else sampler.parallel_window
        slots = max(before.used + 1 + count + window, *(one.cache.num_slots for one in contexts), 0)
        both = before._replace(cache=interleave_caches([one.grown(slots).cache for one in contexts]))
        start = text_piece(reader.processor, [self._special.begin_of_image])
        both, end = reader.read(both, start, reader.no_ids, pad=False)
        spec = DecodeSpec(Janus.embed_image_tokens, Janus.image_logits, sampler.sampling.strategy)
        settings = DecodeParams(sampler.sampling.params, sampler.guidance_scale)
        state = begin(model, params, end, keys, settings, spec=spec)
        if window > 1:
            state = begin_windows(state, window)
            state, _ = decode_windows(model, params, state, settings, (count, count), spec=spec, window=window)
        else:
            state = decode(model, params, state, settings, count - 1, spec=spec)
        tokens = to_host(state.tokens)[0, :count]
        check_sampled(tokens)
        # Parallel decoding has a length for each sequence. All are equal.
        after = both._replace(cache=state.cache).rewound(before.length + count)
        separate = [after._replace(cache=cache) for cache in separate_caches(after.cache, len(contexts))]
        self._context = separate[0]
        if guided:
            self._unconditional.drew(separate[1])
        pixels = to_host(tokens_to_images(model, params, jnp.asarray(tokens)[None]))[0]
        return ImageWithTokens(Image.fromarray(pixels), tokens)

    def _read_image(self, image: ImageWithTokens) -> ContextEnd:
        """Reads the end of an image: its last token, which is not in the cache yet, and the positions after it."""
        piece, ids = generated_image_piece(self._reader.processor, image.image), image.tokens[None]
        rest = tail(piece, len(image.tokens))
        self._unconditional.append_image(piece, rest, ids)
        self._context, end = self._reader.read(self._context, rest, ids, pad=False)
        return end

    def _check_room(self) -> None:
        needed = self._context.length + generated_image_length(self._reader.processor)
        if needed > self._reader.max_positions:
            raise ContextExceeded(
                f"The conversation and its next image have {needed} tokens, but the model's context is "
                f"{self._reader.max_positions}; shorten the conversation."
            )


class _Unconditional:
    """Context of the unconditional sequence, which is computed when an image needs it."""

    def __init__(
        self, reader: ContextReader, prompt: ConversationPrompt, ids: Ids, unconditional: Unconditional
    ) -> None:
        sequence = unconditional_conversation(reader.processor, prompt, unconditional)
        differs = sequence.tokens != prompt.sequence.tokens
        # The sequences share the keys and values of the positions before.
        self._shared = int(differs.argmax()) if differs.any() else len(sequence)
        self._reader, self._is_padding = reader, unconditional == "all"
        self._context: Context | None = None
        self._pending: list[tuple[TokenSequence, Ids]] = []
        self._append(tail(sequence, self._shared), reader.no_ids if self._is_padding else ids)

    def append_text(self, tokens: Int[np.ndarray, " T"]) -> None:
        """Appends text that the model wrote."""
        self._append(text_piece(self._reader.processor, tokens), self._reader.no_ids)

    def append_image(self, piece: TokenSequence, rest: TokenSequence, ids: Ids) -> None:
        """Appends an image, or its rest if the image is in the context already (`drew`)."""
        self._append(*((piece, self._reader.no_ids) if self._is_padding else (rest, ids)))

    def catch_up(self, context: Context) -> Context:
        """Returns the unconditional context, of the same length as the conditional one."""
        own = context.rewound(self._shared) if self._context is None else self._context
        for piece, ids in self._pending:
            own, _ = self._reader.read(own, piece, ids)
        self._pending, self._context = [], own
        return own

    def drew(self, context: Context) -> None:
        """Sets the context after the tokens of an image. Padding replaces them later if it replaces everything."""
        assert self._context is not None
        self._context = context.rewound(self._context.length) if self._is_padding else context

    def _append(self, piece: TokenSequence, ids: Ids) -> None:
        if self._is_padding:
            piece = text_piece(self._reader.processor, [self._reader.processor.tokenizer.special.pad] * len(piece))
        if len(piece):
            self._pending.append((piece, ids))
