"""Sequences of image editing: source images and an instruction, then the edited image.

Two published formats are built in. Janus-4o (ShareGPT-4o-Image, arXiv 2506.18095) writes each source image twice: as
features of the understanding encoder and as image tokens. Janus-Pro-R1-Edit (arXiv 2506.01480) writes its image tokens
only.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.processing.images import ImageSource, open_image, padded_box, prepare_generation, prepare_understanding
from janus_jax.processing.processor import Processor, overlaps
from janus_jax.processing.sequences import ImageSpan, Span, Task, TextSpan, TokenSequence, stack_images
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.processing.transparency import Background

EditingFormat = Literal["janus_4o", "janus_pro_r1_edit"]


@dataclass(frozen=True)
class EditingStyle:
    """Format of the sequences of edits.

    Attributes:
      features: Whether a source image is written as features of the understanding encoder, before its image tokens.
      crops: Whether the center of source and target images is cropped to a square. Otherwise they are padded.
      request: Text after the instruction.
      drop_source: Probability in training that padding replaces the image tokens of a source image.
      drop_instruction: Probability in training that padding replaces the instruction.
    """

    features: bool
    crops: bool
    request: str
    drop_source: float
    drop_instruction: float

    @property
    def num_sequences(self) -> int:
        """Number of sequences that guidance combines, see `guidance_sequences`."""
        return 3 if self.features else 2

    def square(self, image: Image.Image, size: int, min_side: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """Returns an image from `open_image` as the image tokenizer reads it."""
        if self.crops:
            # Janus-Pro-R1's code rounds the long side to the nearest pixel.
            return prepare_generation(image, size, rounding=round)
        return prepare_understanding(image, size, min_side)

    def without_padding(self, edited: Image.Image, source_size: tuple[int, int], min_side: int) -> Image.Image:
        """Returns the part of an edited image that shows its source image, without the padding.

        Args:
          edited: The edited image, a square.
          source_size: Width and height of the source image.
          min_side: See `Processor`.
        """
        return edited if self.crops else edited.crop(padded_box(source_size, edited.width, min_side))

    def guidance_weights(self, guidance_scale: float, image_guidance_scale: float) -> tuple[float, ...]:
        """Returns the weights with which guidance adds the logits of the sequences of `guidance_sequences`.

        With features, the guided logits are u + w (c - u), where c = (full + w2 part) / (1 + w2). Otherwise they are
        u + w (full - u).

        Args:
          guidance_scale: w.
          image_guidance_scale: w2. A larger value gives less weight to the image tokens of the source image.
        """
        if not self.features:
            return guidance_scale, 1 - guidance_scale
        share = 1 / (1 + image_guidance_scale)
        return guidance_scale * share, guidance_scale * (1 - share), 1 - guidance_scale


EDITING_STYLES: dict[str, EditingStyle] = {
    "janus_4o": EditingStyle(features=True, crops=False, request="", drop_source=0.5, drop_instruction=0.0),
    "janus_pro_r1_edit": EditingStyle(
        features=False, crops=True, request=" Please generate an image.", drop_source=0.0, drop_instruction=0.1
    ),
}
"""The published formats with their published probabilities."""


def editing_style(name: str) -> EditingStyle:
    """Returns a format by name.

    Raises:
      JanusError: There is no such format.
    """
    if name not in EDITING_STYLES:
        raise JanusError(f"The editing style {name!r} does not exist; use {' or '.join(EDITING_STYLES)}.")
    return EDITING_STYLES[name]


@dataclass(frozen=True, eq=False)
class Edit:
    """An instruction and its source images, opened.

    Attributes:
      instruction: What to change.
      sources: Source images from `open_image`, at least one; None if their image tokens are precomputed and the style
        reads no features.
      target: The edited image, for training; None without, or if its image tokens are precomputed.
    """

    instruction: str
    sources: Sequence[Image.Image | None]
    target: Image.Image | None = None

    @classmethod
    def open(
        cls,
        instruction: str,
        sources: Sequence[ImageSource],
        target: ImageSource | None = None,
        *,
        background: Background = "none",
    ) -> "Edit":
        """Reads the images.

        Raises:
          JanusError: An image is unreadable, or there is no source image.
        """
        if not sources:
            raise JanusError("An edit needs at least one source image.")
        opened = [open_image(source, background=background) for source in sources]
        return cls(instruction, opened, None if target is None else open_image(target, background=background))


def editing_sequence(
    processor: Processor,
    style: EditingStyle,
    edit: Edit,
    *,
    kept: Sequence[bool] = (),
    drop_instruction: bool = False,
    precomputed: bool = False,
) -> TokenSequence:
    """Tokenizes an edit with its target image, for training.

    Args:
      processor: Processor of the model.
      style: Format of the sequence.
      edit: The edit.
      kept: Whether each source image keeps its image tokens. (): all do. Otherwise pad tokens replace them.
      drop_instruction: Whether pad tokens replace the instruction.
      precomputed: Whether the image tokens of all images are precomputed, so that only features need pixels.

    Raises:
      JanusError: The instruction contains an image placeholder, or the model is a JanusFlow.
    """
    kept = kept or [True] * len(edit.sources)
    sequence = editing_tokens(processor, style, edit.instruction, kept, drop_instruction=drop_instruction)
    return with_editing_images(processor, style, sequence, edit, kept=() if precomputed else kept)


def editing_tokens(
    processor: Processor, style: EditingStyle, instruction: str, kept: Sequence[bool], *, drop_instruction: bool = False
) -> TokenSequence:
    """Returns the sequence of an edit and its target image, without the images. See `editing_sequence`.

    Args:
      processor: Processor of the model.
      style: Format of the sequence.
      instruction: The instruction.
      kept: One element per source image: whether it keeps its image tokens.
      drop_instruction: Whether pad tokens replace the instruction.

    Raises:
      JanusError: See `editing_sequence`.
    """
    spans = _prompt_spans(processor, style, instruction, kept, drop_instruction=drop_instruction)
    return processor.layout.sequence(Task.EDITING, [*spans, ImageSpan("target", end=False)])


def with_editing_images(
    processor: Processor, style: EditingStyle, sequence: TokenSequence, edit: Edit, *, kept: Sequence[bool]
) -> TokenSequence:
    """Returns a sequence of an edit with its images.

    Args:
      processor: Processor of the model.
      style: Format of the sequence.
      sequence: Sequence from `editing_tokens` or a prompt.
      edit: The edit.
      kept: Whether each source image keeps its image tokens. (): image tokens are precomputed or not read, so only the
        images of the understanding encoder are added.
    """
    size, min_side = processor.gen_image_size, processor.min_side
    features = [
        prepare_understanding(source, processor.und_image_size, min_side)
        for source in edit.sources
        if style.features and source is not None
    ]
    read = [source for source, is_kept in zip(edit.sources, kept, strict=False) if is_kept]
    if kept and edit.target is not None:
        read = [edit.target, *read]
    squares = [style.square(image, size, min_side) for image in read if image is not None]
    return dataclasses.replace(
        sequence,
        und_images=stack_images(features, processor.und_image_size),
        gen_images=stack_images(squares, size),
    )


def guidance_sequences(processor: Processor, style: EditingStyle, edit: Edit) -> list[TokenSequence]:
    """Returns the sequences of an edit whose logits guidance combines. Each ends with begin-of-image.

    With features: the full sequence; the same with padding in place of the source's image tokens; and an unconditional
    sequence, all padding. Otherwise: the full sequence, and the same with padding in place of the instruction.

    Raises:
      JanusError: See `editing_sequence`.
    """
    layout = processor.layout
    start = TextSpan(np.array([layout.special.begin_of_image], np.int32), np.zeros(1, bool))
    kept = [True] * len(edit.sources)

    def prompt(kept: Sequence[bool], drop_instruction: bool = False) -> TokenSequence:
        spans = _prompt_spans(processor, style, edit.instruction, kept, drop_instruction=drop_instruction)
        sequence = layout.sequence(Task.EDITING, [*spans, start])
        return with_editing_images(processor, style, sequence, edit, kept=kept)

    full = prompt(kept)
    if not style.features:
        return [full, prompt(kept, drop_instruction=True)]
    tokens = np.full(len(full), layout.special.pad, np.int32)
    tokens[0], tokens[-1] = full.tokens[0], full.tokens[-1]
    unconditional = layout.sequence(Task.EDITING, [TextSpan(tokens, np.zeros(len(tokens), bool))])
    return [full, prompt([False] * len(kept)), unconditional]


def _prompt_spans(
    processor: Processor, style: EditingStyle, instruction: str, kept: Sequence[bool], *, drop_instruction: bool
) -> list[Span]:
    """Returns the spans before the target image, without images. See `editing_tokens`."""
    if IMAGE_PLACEHOLDER in instruction:
        raise JanusError(f"The instruction contains {IMAGE_PLACEHOLDER}; leave it out, the images come first.")
    sources = IMAGE_PLACEHOLDER * len(kept)
    rendered = processor.template.render(
        [{"role": "user", "content": f"{sources}{instruction.strip()}{style.request}"}]
    )

    def image_spans(number: int, is_answer: bool) -> list[ImageSpan]:
        features = [ImageSpan("input")] if style.features else []
        return [*features, ImageSpan("context" if kept[number] else "padding")]

    spans = processor.spans(rendered, len(kept), image_spans)
    if drop_instruction:
        spans[-1] = _without_instruction(processor, rendered.text, style.request, spans[-1])
    return spans


def _without_instruction(processor: Processor, text: str, request: str, last: Span) -> TextSpan:
    """Returns the text after the images with padding in place of the instruction."""
    assert isinstance(last, TextSpan)
    start = text.rindex(IMAGE_PLACEHOLDER) + len(IMAGE_PLACEHOLDER)
    end = len(text) - len(f"{request}{processor.template.separator}{processor.template.assistant}:")
    _, ranges = processor.tokenizer.encode_with_spans(text)
    dropped = overlaps(ranges, [(start, end)])[-len(last.tokens) :]
    tokens = np.where(dropped, processor.tokenizer.special.pad, last.tokens)
    return dataclasses.replace(last, tokens=tokens)
