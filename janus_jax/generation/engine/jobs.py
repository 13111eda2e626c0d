"""Requests in progress: the groups of sequences of each request, and the events that their tokens become."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.generation.answers import AnswerDecoder
from janus_jax.generation.edit_sampler import make_edit_sampler
from janus_jax.generation.engine.batcher import Model
from janus_jax.generation.engine.converse_job import ConverseJob
from janus_jax.generation.engine.flow_job import FlowJob
from janus_jax.generation.engine.groups import Group, GroupSettings, Prompt, key_data, system_prompt_length
from janus_jax.generation.engine.handle import Handle
from janus_jax.generation.engine.job import ImageJob, Job
from janus_jax.generation.engine.pictures import PendingPicture, ProgressOfImage
from janus_jax.generation.engine.requests import (
    ChatRequest,
    ConverseRequest,
    EditRequest,
    Request,
    TextPiece,
    Usage,
)
from janus_jax.generation.image_sampler import make_image_sampler
from janus_jax.generation.image_tokens import TokenSampler
from janus_jax.generation.rectified_flow import FlowSampler
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.generation.text import answer_limits
from janus_jax.processing import Edit, TokenSequence, guidance_sequences

_MAX_IMAGES = 256


class ChatJob(Job):
    """An answer in progress."""

    def __init__(self, request: ChatRequest, model: Model, handle: Handle, max_length: int) -> None:
        """Checks and tokenizes the request.

        Raises:
          JanusError: See `Pretrained.chat`.
        """
        super().__init__(handle)
        processor = model.processor
        sampling = SamplingConfig(request.temperature, request.top_k, request.top_p)
        (key,) = key_data(request.seed, 0, range(1))
        check_stop(request.stop)
        sequence = processor.understanding_sequence(
            request.messages, request.images, request.system_prompt, request.background
        )
        (limit,) = answer_limits([len(sequence)], request.max_new_tokens, max_length)
        self._decoder = AnswerDecoder(processor.tokenizer, request.stop, limit)
        self._sent = 0
        self.usage = Usage(prompt_tokens=len(sequence))
        settings = GroupSettings(False, sampling, stop_tokens=(processor.tokenizer.special.eos,))
        prompt = Prompt(sequence, num_shared=system_prompt_length(processor, sequence, request.system_prompt))
        self.add(Group((prompt,), settings, key, limit, self._receive, self.fail))

    def _receive(self, tokens: Sequence[int]) -> bool:
        self._decoder.read(tokens)
        if (end := self._decoder.safe_length) > self._sent:
            self.handle.send(TextPiece(self._decoder.text[self._sent : end]))
            self._sent = end
        self.usage = Usage(self.usage.prompt_tokens, self._decoder.num_tokens)
        if self._decoder.finished:
            self.finish("length" if self._decoder.reached_limit else "stop")
        return self._decoder.finished


class TokenImageJob(ImageJob):
    """Images of Janus in progress."""

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        sampler: TokenSampler,
        keys: np.ndarray,
        model: Model,
        handle: Handle,
        partial_images: int,
    ) -> None:
        """Makes one group for each image.

        Args:
          sequences: Sequences that guidance combines, the same for all images.
          sampler: Settings of sampling.
          keys: Data of the random key of each image.
          model: The model.
          handle: Receives the events.
          partial_images: Number of unfinished pictures of each image.
        """
        super().__init__(handle)
        self._left = len(keys)
        self.usage = Usage(prompt_tokens=len(sequences[0]))
        settings = GroupSettings(True, sampler.sampling, sampler.guidance)
        # The prompts are shared, so that they are computed once.
        prompts = tuple(map(Prompt, sequences))
        count = model.config.num_gen_tokens
        for number, key in enumerate(keys):
            progress = ProgressOfImage(self, number, count, partial_images)
            self.add(Group(prompts, settings, key, count, progress.receive, self.fail))

    def continue_after(self, pending: PendingPicture, image: Image.Image) -> None:
        """See `ImageJob`."""
        self._left -= 1
        if not self._left:
            self.finish("stop")


def make_job(request: Request, model: Model, handle: Handle, max_length: int) -> Job:
    """Checks and tokenizes a request.

    Args:
      request: The request.
      model: The model.
      handle: Receives the events.
      max_length: Maximum number of positions of a sequence.

    Raises:
      JanusError: The request is invalid, or longer than `max_length`.
    """
    if isinstance(request, ConverseRequest):
        check_stop(request.stop)
        _check_partial_images(request.partial_images)
        return ConverseJob(request, model, handle, max_length)
    if isinstance(request, ChatRequest):
        return ChatJob(request, model, handle, max_length)
    if not isinstance(request.n, int) or not 1 <= request.n <= _MAX_IMAGES:
        raise JanusError(f"n is {request.n!r}; it must be a whole number from 1 to {_MAX_IMAGES}.")
    _check_partial_images(request.partial_images)
    sampler: Any
    if isinstance(request, EditRequest):
        sampler = make_edit_sampler(model.config, **request.settings)
        edit = Edit.open(request.instruction, request.images, background=request.background)
        sequences = guidance_sequences(model.processor, sampler.format, edit)
        prompt, numbers = 0, range(request.n)
    else:
        sampler = make_image_sampler(model.config, **request.settings)
        sequences = sampler.prompt_sequences(model.processor, [model.processor.generation_prompt(request.prompt)])
        prompt, numbers = request.prompt_index, range(request.first_number, request.first_number + request.n)
    longest, num_new = max(map(len, sequences)), model.config.num_gen_tokens
    if longest + num_new > max_length:
        raise JanusError(
            f"The prompt has {longest} tokens and the image {num_new}, but the maximum length is {max_length}; shorten "
            f"the prompt."
        )
    if isinstance(sampler, FlowSampler):
        random_keys = sampling_keys(request.seed, prompt, numbers)
        return FlowJob(sequences[0], sampler, random_keys, model, handle, request.partial_images)
    keys = key_data(request.seed, prompt, numbers)
    return TokenImageJob(sequences, sampler, keys, model, handle, request.partial_images)


def check_stop(stop: str | Sequence[str]) -> None:
    """Checks the stop strings of a request.

    Raises:
      JanusError: One of them is empty.
    """
    if any(not isinstance(one, str) or not one for one in ((stop,) if isinstance(stop, str) else stop)):
        raise JanusError(f"stop is {stop!r:.80}; it must be texts that are not empty.")


def _check_partial_images(number: int) -> None:
    if not isinstance(number, int) or number < 0:
        raise JanusError(f"partial_images is {number!r}; it must be a whole number from 0 on.")
