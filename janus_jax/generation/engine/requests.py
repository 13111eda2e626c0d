"""Requests that the engine serves, and the events that it returns.

A request is checked and tokenized when it is submitted, so that an invalid request raises `JanusError` in the thread of
its caller and does not reach the device.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from PIL import Image

from janus_jax.processing import Background, ImageSource, ImageWithTokens, Message

FinishReason = Literal["stop", "length", "cancelled"]
"""Why a request has finished.

"stop": end-of-sentence, a stop string or the last picture. "length": a limit of tokens. "cancelled": a cancellation.
"""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A conversation to answer. The answer equals that of `Pretrained.chat` with the same arguments.

    Attributes:
      messages: The conversation; its messages may contain images.
      images: Images in the order of their placeholders, if the messages contain no images.
      max_new_tokens: Maximum number of tokens of the answer. Default: 512.
      temperature, top_k, top_p: See `SamplingConfig`.
      seed: Random seed, from 0 to 2**32 - 1.
      stop: Strings that end the answer. They are not part of the answer.
      system_prompt: Replaces the model's system prompt. "" removes it.
      background: Background of transparent pixels, see `Background`.
    """

    messages: Sequence[Message]
    images: Sequence[ImageSource] | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    system_prompt: str | None = None
    background: Background = "none"


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """Images to generate from a prompt. They equal those of `Pretrained.generate` with the same arguments.

    Attributes:
      prompt: Description of the images.
      n: Number of images.
      seed: Random seed, from 0 to 2**32 - 1.
      settings: Settings of the model's image sampler, such as `guidance_scale` and `temperature`. Settings that are not
        given have the values of the model's paper.
      partial_images: Number of unfinished pictures to return for each image while it is generated.
      prompt_index, first_number: The image i of the request equals image `first_number` + i of prompt `prompt_index` of
        a call of `Pretrained.generate` with several prompts.
    """

    prompt: str
    n: int = 1
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    partial_images: int = 0
    prompt_index: int = 0
    first_number: int = 0


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """Images to edit. The results equal those of `Pretrained.edit` with the same arguments.

    Attributes:
      images: Source images, at least one.
      instruction: What to change.
      n: Number of edited images.
      seed: Random seed, from 0 to 2**32 - 1.
      settings: Settings of `EditSampler`.
      background: Background of transparent pixels, see `Background`.
      partial_images: See `GenerateRequest`.
    """

    images: Sequence[ImageSource]
    instruction: str
    n: int = 1
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    background: Background = "none"
    partial_images: int = 0


@dataclass(frozen=True, kw_only=True)
class ConverseRequest(ChatRequest):
    """A conversation in which the model may generate images. The answer equals that of `Pretrained.converse`.

    Attributes:
      image_sampling: Settings of `ConversationImageSampler`.
      partial_images: See `GenerateRequest`.
    """

    image_sampling: Mapping[str, Any] = field(default_factory=dict)
    partial_images: int = 0


Request = ChatRequest | ConverseRequest | GenerateRequest | EditRequest


@dataclass(frozen=True)
class Usage:
    """Tokens of a request.

    Attributes:
      prompt_tokens: Number of tokens of the prompt, with the positions of its images. Unconditional sequences do not
        count.
      completion_tokens: Number of generated text tokens and image tokens, or of steps of JanusFlow.
      cached_tokens: Number of the prompt's tokens whose keys and values were already on the device.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Usage(*(one + two for one, two in zip(mine, others, strict=True)))


@dataclass(frozen=True)
class TextPiece:
    """The next piece of an answer. The pieces of `Pretrained.chat_stream` and these have the same concatenation."""

    text: str


@dataclass(frozen=True)
class PartialPicture:
    """An image that is not finished.

    Attributes:
      number: Index of the image in its request.
      image: The image. The part without tokens repeats the tokens above it.
      progress: Finished part, from 0 to 1.
    """

    number: int
    image: Image.Image
    progress: float


@dataclass(frozen=True, eq=False)
class Picture:
    """A finished image.

    Attributes:
      number: Index of the image in its request. Images may finish in any order.
      image: The image.
      tokens: Its image tokens. None for JanusFlow.
    """

    number: int
    image: Image.Image
    tokens: Int[np.ndarray, " T"] | None = None

    @property
    def with_tokens(self) -> ImageWithTokens:
        """The image with its tokens, for the next turn of a conversation."""
        assert self.tokens is not None
        return ImageWithTokens(self.image, self.tokens)


@dataclass(frozen=True)
class Finished:
    """Last event of a request that did not fail."""

    reason: FinishReason
    usage: Usage


@dataclass(frozen=True)
class Failed:
    """Last event of a request that failed on the device. Other requests are not affected.

    Attributes:
      error: `ContextExceeded` if an image of a conversation has no room, `JanusError` if the model computes NaN, or the
        exception of the device.
    """

    error: Exception


Event = TextPiece | PartialPicture | Picture | Finished | Failed
