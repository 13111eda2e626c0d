"""Token sequences, and the spans of text and images that they consist of."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8

from janus_jax.batch import NO_IMAGE
from janus_jax.errors import JanusError
from janus_jax.processing.tokenizer import SpecialIds


class Task(enum.Enum):
    """Task of a training example.

    Text, image understanding, image generation, editing of input images, or a conversation in which the assistant
    generates images.
    """

    TEXT = "text"
    UNDERSTANDING = "understanding"
    GENERATION = "generation"
    EDITING = "editing"
    INTERLEAVED = "interleaved"


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One example: L tokens, U input images, G target images and C context images.

    Attributes:
      task: Task of the example.
      tokens: Text token ids. Image positions have the image placeholder's id.
      answer_mask: True at the text tokens to predict: the assistant's answers with their end-of-sentence, and the
        begin-of-image tokens that the assistant writes. Image positions are False. The mask marks the predicted tokens,
        not the positions that predict them.
      und_patch_index: See `Batch`.
      gen_token_index: Image token n of image i has index `i * N + n`. Target images have the numbers 0 to G - 1 and
        context images G to G + C - 1. All tokens of target images are predicted, those of context images are not.
      und_images: Input images, uint8 RGB.
      gen_images: Target images, then context images, uint8 RGB. Empty if their image tokens are precomputed.
      num_target_images: G.
      num_context_images: C.
    """

    task: Task
    tokens: Int[np.ndarray, "L"]
    answer_mask: Bool[np.ndarray, "L"]
    und_patch_index: Int[np.ndarray, "L"]
    gen_token_index: Int[np.ndarray, "L"]
    und_images: UInt8[np.ndarray, "U H W 3"]
    gen_images: UInt8[np.ndarray, "M H2 W2 3"]
    num_target_images: int = 0
    num_context_images: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class TextSpan:
    """Text tokens.

    Attributes:
      tokens: Token ids.
      is_answer: True at the tokens to predict.
    """

    tokens: Int[np.ndarray, "T"]
    is_answer: Bool[np.ndarray, "T"]


@dataclass(frozen=True, eq=False)
class ImageSpan:
    """An image, between begin-of-image and end-of-image.

    Attributes:
      kind: "input": patches for the understanding encoder. "context": image tokens that are not predicted. "target":
        image tokens that are predicted. "padding": pad tokens instead of image tokens, without an image.
      image: The image at the size of its encoder, uint8 RGB; None if it is added later or its tokens are precomputed.
      end: Whether end-of-image follows the image.
      is_answer: Whether begin-of-image is predicted, because the assistant writes it.
    """

    kind: Literal["input", "context", "target", "padding"]
    image: UInt8[np.ndarray, "H W 3"] | None = None
    end: bool = True
    is_answer: bool = False


Span = TextSpan | ImageSpan
"""A part of a token sequence."""


@dataclass(frozen=True)
class ImageLayout:
    """How images are written in token sequences.

    Attributes:
      special: Ids of the special tokens.
      num_und_tokens: Number of patches of an input image.
      num_gen_tokens: Number of image tokens, or of patches of latents, of a target image.
      und_image_size: Side of an input image in pixels.
      gen_image_size: Side of a target image in pixels.
      has_latents: Whether target images are latents (JanusFlow) instead of image tokens.
    """

    special: SpecialIds
    num_und_tokens: int
    num_gen_tokens: int
    und_image_size: int
    gen_image_size: int
    has_latents: bool

    def sequence(self, task: Task, spans: Sequence[Span]) -> TokenSequence:
        """Concatenates spans to a token sequence.

        Raises:
          JanusError: The model is a JanusFlow and a span follows a target image, or an image is a context image. Its
            sequences end with the target image, whose latents are noisy (arXiv 2411.07975, section 3.1).
        """
        images: dict[str, list[ImageSpan]] = {"input": [], "context": [], "target": [], "padding": []}
        for span in spans:
            if isinstance(span, ImageSpan):
                images[span.kind].append(span)
        if self.has_latents and (images["context"] or any(_is_target(span) for span in spans[:-1])):
            raise JanusError(
                "A JanusFlow model reads no images as latents in its context: a target image must be the end of its "
                "sequence. Use a Janus or Janus-Pro model for editing and for conversations with generated images."
            )
        first_context = len(images["target"])
        counts = {"input": 0, "target": 0, "context": first_context}
        pieces = [self._piece(span, counts) for span in spans]
        tokens, answers, und, gen = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        und_images = [span.image for span in images["input"] if span.image is not None]
        gen_images = [span.image for kind in ("target", "context") for span in images[kind] if span.image is not None]
        return TokenSequence(
            task=task,
            tokens=tokens,
            answer_mask=answers,
            und_patch_index=und,
            gen_token_index=gen,
            und_images=stack_images(und_images, self.und_image_size),
            gen_images=stack_images(gen_images, self.gen_image_size),
            num_target_images=first_context,
            num_context_images=len(images["context"]),
        )

    def num_positions(self, span: Span) -> int:
        """Returns the number of positions of a span."""
        if isinstance(span, TextSpan):
            return len(span.tokens)
        return (self.num_und_tokens if span.kind == "input" else self.num_gen_tokens) + 1 + span.end

    def _piece(self, span: Span, counts: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns tokens, answer mask, `und_patch_index` and `gen_token_index` of a span, and counts its image."""
        if isinstance(span, TextSpan):
            no_image = np.full(len(span.tokens), NO_IMAGE, np.int32)
            return np.asarray(span.tokens, np.int32), np.asarray(span.is_answer, bool), no_image, no_image
        n = self.num_und_tokens if span.kind == "input" else self.num_gen_tokens
        length = self.num_positions(span)
        filler = self.special.pad if span.kind == "padding" else self.special.image_placeholder
        tokens = np.full(length, filler, np.int32)
        tokens[0] = self.special.begin_of_image
        if span.end:
            tokens[-1] = self.special.end_of_image
        answers, index = np.zeros(length, bool), np.full(length, NO_IMAGE, np.int32)
        answers[0] = span.is_answer
        no_image = index.copy()
        if span.kind != "padding":
            index[1 : n + 1] = counts[span.kind] * n + np.arange(n)
            counts[span.kind] += 1
        return (tokens, answers, index, no_image) if span.kind == "input" else (tokens, answers, no_image, index)


def _is_target(span: Span) -> bool:
    return isinstance(span, ImageSpan) and span.kind == "target"


def blank_images(side: int, *counts: int) -> UInt8[np.ndarray, "... H W 3"]:
    """Returns black images."""
    return np.zeros((*counts, side, side, 3), np.uint8)


def stack_images(images: Sequence[UInt8[np.ndarray, "H W 3"]], side: int) -> UInt8[np.ndarray, "U H W 3"]:
    """Stacks images of one size."""
    # A single image, the usual case, is not copied.
    return images[0][None] if len(images) == 1 else np.stack(images) if images else blank_images(side, 0)
