"""Conversations in which the assistant generates images: prompts for the next answer, and messages of answers."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.processing.conversation import Message
from janus_jax.processing.images import ImageSource, ImageWithTokens, open_image, prepare_understanding
from janus_jax.processing.processor import Processor, image_sources, overlaps
from janus_jax.processing.sequences import ImageSpan, Task, TextSpan, TokenSequence
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.processing.transparency import Background

Unconditional = Literal["all", "message"]
"""Part of a conversation that padding replaces in the unconditional sequence of an image."""


@dataclass(frozen=True, eq=False)
class ConversationPrompt:
    """A conversation that ends where the assistant's answer starts.

    Attributes:
      sequence: The token sequence, in the layout of training (`Processor.interleaved_sequence`).
      image_tokens: Image tokens of each image of the assistant; None for an image that is not an `ImageWithTokens`.
      is_message: True at the text of the last message of the user.
    """

    sequence: TokenSequence
    image_tokens: Sequence[Int[np.ndarray, "N"] | None]
    is_message: Bool[np.ndarray, "L"]


def check_unconditional(unconditional: str) -> None:
    """Checks the setting `unconditional` of a sampler.

    Raises:
      JanusError: There is no such part of a conversation.
    """
    if unconditional not in get_args(Unconditional):
        allowed = " or ".join(get_args(Unconditional))
        raise JanusError(f"unconditional is {unconditional!r}; it must be {allowed}.")


def conversation_prompt(
    processor: Processor,
    messages: Sequence[Message],
    images: Sequence[ImageSource] | None = None,
    system_prompt: str | None = None,
    background: Background = "none",
) -> ConversationPrompt:
    """Tokenizes a conversation for the assistant's next answer.

    Args:
      processor: Processor of the model.
      messages: The messages; the last one is the user's. Images in turns of the assistant are images that it generated.
      images: Images in the order of their placeholders, if the messages contain no images.
      system_prompt: Replaces the processor's system prompt. "" removes it.
      background: Background of transparent pixels, see `Background`.

    Raises:
      JanusError: The numbers of placeholders and images differ, an image is unreadable, a message is malformed, or the
        last message is not the user's.
    """
    sources = image_sources(messages, images)
    opened = [open_image(source, background=background) for source in sources]
    rendered = processor.template.render(messages, processor.system_prompt if system_prompt is None else system_prompt)
    if rendered.answers and rendered.answers[-1][1] == len(rendered.text):
        raise JanusError("The last message is the assistant's; add a message of the user for it to answer.")
    image_tokens: list[np.ndarray | None] = []

    def image_spans(number: int, is_answer: bool) -> list[ImageSpan]:
        if is_answer:
            source = sources[number]
            tokens = source.tokens if isinstance(source, ImageWithTokens) else None
            image_tokens.append(None if tokens is None else _checked_tokens(processor, tokens))
        return processor.interleaved_spans(is_answer, features=processor.interleaved_features)

    spans = processor.spans(rendered, len(opened), image_spans)
    content = messages[-1]["content"].strip()
    end = len(rendered.text) - len(f"{processor.template.separator}{processor.template.assistant}:")
    ids, ranges = processor.tokenizer.encode_with_spans(rendered.text)
    in_message = overlaps(ranges, [(end - len(content), end)])
    in_message = in_message[np.array(ids) != processor.tokenizer.special.image_placeholder]
    layout = processor.layout
    is_text = np.concatenate([np.full(layout.num_positions(span), isinstance(span, TextSpan)) for span in spans])
    is_message = np.zeros(len(is_text), bool)
    is_message[is_text] = in_message
    sequence = processor.with_interleaved_images(
        layout.sequence(Task.INTERLEAVED, spans), messages, opened, features=processor.interleaved_features
    )
    return ConversationPrompt(sequence, image_tokens, is_message)


def unconditional_conversation(
    processor: Processor, prompt: ConversationPrompt, unconditional: Unconditional
) -> TokenSequence:
    """Returns the sequence of a conversation whose logits guidance reads as unconditional.

    It has the length of the conversation.

    Args:
      processor: Processor of the model.
      prompt: The conversation.
      unconditional: "all": padding replaces all tokens but the first, as in text-to-image (`unconditional_sequence`).
        "message": padding replaces the text of the user's last message; earlier messages and all images are kept, as
        in the edits of Janus-Pro-R1 (arXiv 2506.01480).
    """
    sequence, pad = prompt.sequence, processor.tokenizer.special.pad
    if unconditional == "message":
        return dataclasses.replace(sequence, tokens=np.where(prompt.is_message, pad, sequence.tokens).astype(np.int32))
    tokens = np.full(len(sequence), pad, np.int32)
    tokens[0] = sequence.tokens[0]
    return text_piece(processor, tokens)


def text_piece(processor: Processor, tokens: Sequence[int] | Int[np.ndarray, "T"]) -> TokenSequence:
    """Returns text tokens as a part of a conversation."""
    array = np.asarray(tokens, np.int32)
    return processor.layout.sequence(Task.INTERLEAVED, [TextSpan(array, np.zeros(len(array), bool))])


def generated_image_piece(processor: Processor, image: Image.Image) -> TokenSequence:
    """Returns an image that the assistant generates as a part of a conversation, from begin-of-image on.

    `gen_token_index` counts from 0. The image tokens are not computed.
    """
    features = processor.interleaved_features
    piece = processor.layout.sequence(Task.INTERLEAVED, processor.interleaved_spans(True, features=features))
    if not features:
        return piece
    pixels = prepare_understanding(image, processor.und_image_size, processor.min_side)
    return dataclasses.replace(piece, und_images=pixels[None])


def generated_image_length(processor: Processor) -> int:
    """Returns the number of positions of `generated_image_piece`."""
    spans = processor.interleaved_spans(True, features=processor.interleaved_features)
    return sum(map(processor.layout.num_positions, spans))


def tail(piece: TokenSequence, start: int) -> TokenSequence:
    """Returns the positions of a part from `start` on. It keeps all images."""
    names = ("tokens", "answer_mask", "und_patch_index", "gen_token_index")
    return dataclasses.replace(piece, **{name: getattr(piece, name)[start:] for name in names})


def answer_message(pieces: Iterable["str | ImageWithTokens"]) -> Message:
    """Returns the message of an answer from its pieces of text and its images, to continue the conversation."""
    pieces = list(pieces)
    text = "".join(piece if isinstance(piece, str) else IMAGE_PLACEHOLDER for piece in pieces)
    images = [piece for piece in pieces if isinstance(piece, ImageWithTokens)]
    return {"role": "assistant", "content": text.strip(), "images": images}


def _checked_tokens(processor: Processor, tokens: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    if np.shape(tokens) != (processor.num_gen_tokens,):
        raise JanusError(
            f"A generated image has {np.size(tokens)} image tokens, but this model has {processor.num_gen_tokens}; "
            f"pass it to the model that generated it, or give its `image` without the tokens."
        )
    return tokens
