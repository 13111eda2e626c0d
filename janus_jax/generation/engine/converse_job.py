"""Conversations with generated images, in progress.

The parts of an answer (text, image, text, ...) are groups that follow each other. Each part starts with a prompt of the
whole conversation so far, which gives the same tokens as a cache that is kept (`generation.interleaved`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from PIL import Image

from janus_jax.batch import NO_IMAGE
from janus_jax.errors import ContextExceeded
from janus_jax.generation.answers import AnswerDecoder
from janus_jax.generation.engine.batcher import Model
from janus_jax.generation.engine.groups import Group, GroupSettings, Prompt, key_data, system_prompt_length
from janus_jax.generation.engine.handle import Handle
from janus_jax.generation.engine.job import ImageJob
from janus_jax.generation.engine.pictures import PendingPicture, ProgressOfImage
from janus_jax.generation.engine.requests import ConverseRequest, TextPiece, Usage
from janus_jax.generation.interleaved import make_conversation_image_sampler
from janus_jax.generation.sampling import SamplingConfig
from janus_jax.generation.text import answer_limits
from janus_jax.processing import (
    TokenSequence,
    conversation_prompt,
    generated_image_length,
    generated_image_piece,
    text_piece,
    unconditional_conversation,
)

Tokens = Int[np.ndarray, " N"]


@dataclasses.dataclass
class _Sequence:
    """A conversation so far.

    Attributes:
      parts: Its parts.
      image_tokens: Tokens of its generated images; None if they are encoded later.
      num_shared: See `Prompt`.
    """

    parts: list[TokenSequence]
    image_tokens: list[Tokens | None]
    num_shared: int = 0

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def prompt(self, *more: TokenSequence) -> Prompt:
        """Returns the conversation, followed by further parts, as a prompt."""
        return Prompt(_joined([*self.parts, *more]), tuple(self.image_tokens), self.num_shared)


class ConverseJob(ImageJob):
    """A conversation with generated images."""

    def __init__(self, request: ConverseRequest, model: Model, handle: Handle, max_length: int) -> None:
        """Checks and tokenizes the request.

        Raises:
          JanusError: See `Pretrained.converse`.
        """
        super().__init__(handle)
        self._request, self._processor, self._max_length = request, model.processor, max_length
        self._image_sampling = make_conversation_image_sampler(model.config, **request.image_sampling)
        self._sampling = SamplingConfig(request.temperature, request.top_k, request.top_p)
        self._key(0)
        prompt = conversation_prompt(
            model.processor, request.messages, request.images, request.system_prompt, request.background
        )
        (self._left,) = answer_limits([len(prompt.sequence)], request.max_new_tokens, max_length)
        tokens = list(prompt.image_tokens)
        shared = system_prompt_length(model.processor, prompt.sequence, request.system_prompt)
        self._conversation = _Sequence([prompt.sequence], tokens, shared)
        unconditional = unconditional_conversation(model.processor, prompt, self._image_sampling.unconditional)
        self._is_padding = self._image_sampling.unconditional == "all"
        self._unconditional = _Sequence([unconditional], [] if self._is_padding else list(tokens))
        self._part = 0
        self._image: ProgressOfImage | None = None
        self.usage = Usage(prompt_tokens=len(prompt.sequence))
        self._write()

    def continue_after(self, pending: PendingPicture, image: Image.Image) -> None:
        """See `ImageJob`. The text goes on."""
        piece = generated_image_piece(self._processor, image)
        self._conversation.parts.append(piece)
        self._conversation.image_tokens.append(pending.tokens)
        if self._is_padding:
            self._unconditional.parts.append(self._padding(len(piece)))
        else:
            self._unconditional.parts.append(piece)
            self._unconditional.image_tokens.append(pending.tokens)
        self._part += 2
        if self._left <= 0:
            self.finish("length")
        else:
            self._write()

    def _write(self) -> None:
        """Starts a part of text."""
        special = self._processor.tokenizer.special
        limit = min(self._left, self._max_length - len(self._conversation))
        if limit < 1:
            self.finish("length")
            return
        stop = (self._request.stop,) if isinstance(self._request.stop, str) else tuple(self._request.stop)
        decoder = AnswerDecoder(self._processor.tokenizer, stop, limit)
        written: list[int] = []
        sent = 0

        def receive(tokens: Sequence[int]) -> bool:
            nonlocal sent
            written.extend(tokens)
            is_image = bool(tokens) and tokens[-1] == special.begin_of_image
            decoder.read(tokens[: len(tokens) - is_image])
            begins_image = is_image and not decoder.finished
            text = decoder.finish() if begins_image else decoder.text
            if (end := decoder.safe_length) > sent:
                self.handle.send(TextPiece(text[sent:end]))
                sent = end
            self.usage += Usage(completion_tokens=len(tokens))
            if decoder.finished:
                self._end_text(written, begins_image=begins_image, reached_limit=decoder.reached_limit)
            return decoder.finished

        settings = GroupSettings(False, self._sampling, stop_tokens=(special.eos, special.begin_of_image))
        self.add(Group((self._conversation.prompt(),), settings, self._key(self._part), limit, receive, self.fail))

    def _end_text(self, written: list[int], *, begins_image: bool, reached_limit: bool) -> None:
        self._left -= len(written)
        if not begins_image or self._part // 2 == self._image_sampling.max_images:
            self.finish("length" if reached_limit else "stop")
            return
        text = text_piece(self._processor, written[:-1])
        if len(text):
            self._conversation.parts.append(text)
            self._unconditional.parts.append(self._padding(len(text)) if self._is_padding else text)
        needed = len(self._conversation) + generated_image_length(self._processor)
        if needed > self._max_length:
            raise ContextExceeded(
                f"The conversation and its next image have {needed} tokens, but the maximum length is "
                f"{self._max_length}; shorten the conversation."
            )
        self._generate_image()

    def _generate_image(self) -> None:
        """Starts an image."""
        start = text_piece(self._processor, [self._processor.tokenizer.special.begin_of_image])
        sequences = [self._conversation]
        if self._image_sampling.guidance_scale != 1:
            sequences.append(self._unconditional)
        number, count = self._part // 2, self._processor.num_gen_tokens
        progress = ProgressOfImage(self, number, count, self._request.partial_images)
        settings = GroupSettings(True, self._image_sampling.sampling, self._image_sampling.guidance)
        prompts = tuple(sequence.prompt(start) for sequence in sequences)
        self.add(Group(prompts, settings, self._key(self._part + 1), count, progress.receive, self.fail))

    def _padding(self, length: int) -> TokenSequence:
        return text_piece(self._processor, [self._processor.tokenizer.special.pad] * length)

    def _key(self, part: int) -> np.ndarray:
        return key_data(self._request.seed, part, range(1))[0]


def _joined(parts: Sequence[TokenSequence]) -> TokenSequence:
    """Concatenates parts of a conversation, whose images are numbered on."""

    def numbered(name: str) -> np.ndarray:
        count, arrays = 0, []
        for part in parts:
            index = getattr(part, name)
            arrays.append(np.where(index == NO_IMAGE, NO_IMAGE, index + count))
            count += int(index.max(initial=NO_IMAGE)) + 1
        return np.concatenate(arrays)

    return dataclasses.replace(
        parts[0],
        tokens=np.concatenate([part.tokens for part in parts]),
        answer_mask=np.concatenate([part.answer_mask for part in parts]),
        und_patch_index=numbered("und_patch_index"),
        gen_token_index=numbered("gen_token_index"),
        und_images=np.concatenate([part.und_images for part in parts]),
        gen_images=np.concatenate([part.gen_images for part in parts]),
    )
