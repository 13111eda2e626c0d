"""Converts messages and images to token sequences, and token sequences to batches."""

import dataclasses
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Bool, Int, UInt8

from janus_jax.batch import NO_IMAGE, PADDING_SEGMENT, Batch
from janus_jax.buckets import as_path
from janus_jax.config import JanusFlowConfig, ModelConfig
from janus_jax.errors import JanusError
from janus_jax.files import read_json_if_exists
from janus_jax.processing.conversation import (
    TEMPLATES,
    UNDERSTANDING_SYSTEM_PROMPT,
    ConversationTemplate,
    Message,
)
from janus_jax.processing.images import ImageSource, open_image, prepare_generation, prepare_understanding
from janus_jax.processing.tokenizer import BEGIN_OF_IMAGE, IMAGE_PLACEHOLDER, Tokenizer
from janus_jax.processing.transparency import Background

IMAGE_MEAN = 0.5
"""Mean and standard deviation with which every released model normalizes pixels in [0, 1]."""


class Task(enum.Enum):
    """Task of a training example: text, image understanding, image generation, or editing of input images."""

    TEXT = "text"
    UNDERSTANDING = "understanding"
    GENERATION = "generation"
    EDITING = "editing"


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One example: L tokens, U input images and G target images.

    Attributes:
      task: Task of the example.
      tokens: Text token ids. Image positions have the image placeholder's id.
      answer_mask: True at the text tokens to predict: the assistant's answers with their end-of-sentence. Image
        positions are False. The mask marks the predicted tokens, not the positions that predict them.
      und_patch_index: See `Batch`.
      gen_token_index: See `Batch`. All tokens of target images are predicted.
      und_images: Input images, uint8 RGB.
      gen_images: Target images, uint8 RGB.
    """

    task: Task
    tokens: Int[np.ndarray, "L"]
    answer_mask: Bool[np.ndarray, "L"]
    und_patch_index: Int[np.ndarray, "L"]
    gen_token_index: Int[np.ndarray, "L"]
    und_images: UInt8[np.ndarray, "U H W 3"]
    gen_images: UInt8[np.ndarray, "G H2 W2 3"]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Processor:
    """Converts messages and images to the arrays that one model reads.

    Attributes:
      tokenizer: Tokenizer of the model folder.
      template: Conversation template.
      und_image_size: Side of an input image in pixels.
      num_und_tokens: Number of tokens of an input image, without begin-of-image and end-of-image.
      gen_image_size: Side of a target image in pixels.
      num_gen_tokens: Number of image tokens (Janus) or patches of latents (JanusFlow) of a target image.
      min_side: Minimum length in pixels of the short side of an input image after scaling.
      system_prompt: Default system prompt of conversations.
      masks_padding: An unconditional sequence has padding in place of its prompt. True: that padding is masked
        (JanusFlow). False: it is attended to (Janus).
      latent_shape: Height, width and channels of a target image's latents (JanusFlow). None: the model generates image
        tokens (Janus).
    """

    tokenizer: Tokenizer
    template: ConversationTemplate
    und_image_size: int = 384
    num_und_tokens: int = 576
    gen_image_size: int = 384
    num_gen_tokens: int = 576
    min_side: int = 14
    system_prompt: str = UNDERSTANDING_SYSTEM_PROMPT
    masks_padding: bool = False
    latent_shape: tuple[int, int, int] | None = None

    @classmethod
    def from_directory(cls, path: str | Path, config: ModelConfig) -> Self:
        """Reads a processor from a model folder.

        `tokenizer.json` is required; `preprocessor_config.json` and `processor_config.json` are optional. The field
        `system_prompt` of `processor_config.json` is specific to this project: it replaces the released models' system
        prompt.

        Raises:
          JanusError: The tokenizer is missing or corrupt, or a file contradicts `config`.
        """
        tokenizer = Tokenizer.from_directory(path)
        tokenizer.check_vocabulary(config.llm.vocab_size)
        min_side, system_prompt = _read_settings(as_path(path), config)
        return cls(
            tokenizer,
            TEMPLATES[config.conversation],
            und_image_size=config.und_encoder.image_size,
            num_und_tokens=config.und_encoder.num_patches,
            gen_image_size=config.gen_image_size,
            num_gen_tokens=config.num_gen_tokens,
            min_side=min_side,
            system_prompt=system_prompt,
            masks_padding=isinstance(config, JanusFlowConfig),
            latent_shape=config.latent_shape,
        )

    def understanding_sequence(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageSource] | None = None,
        system_prompt: str | None = None,
        background: Background = "none",
    ) -> TokenSequence:
        """Tokenizes a conversation with any number of images. The task of a conversation without images is text.

        Each `<image_placeholder>` becomes begin-of-image, the positions of the image, and end-of-image.

        Args:
          messages: The messages. If the last one is the user's, the sequence is a prompt for the model's answer.
          images: Images in the order of their placeholders, if the messages contain no images.
          system_prompt: Replaces the processor's system prompt. "" removes it.
          background: Background of transparent pixels, see `Background`.

        Raises:
          JanusError: The numbers of placeholders and images differ, an image is unreadable, or a message is malformed.
        """
        sources = _image_sources(messages, images)
        sequence = self.understanding_tokens(messages, len(sources), system_prompt)
        return self.with_input_images(sequence, sources, background)

    def understanding_tokens(
        self, messages: Sequence[Message], num_images: int, system_prompt: str | None = None
    ) -> TokenSequence:
        """Returns the sequence of a conversation without its images. See `understanding_sequence`.

        Raises:
          JanusError: The number of placeholders is not `num_images`, or a message is malformed.
        """
        prompt = self.system_prompt if system_prompt is None else system_prompt
        text, answers = self.template.render(messages, prompt)
        ids, spans = self.tokenizer.encode_with_spans(text)
        tokens = np.array(ids, np.int32)
        is_image = tokens == self.tokenizer.special.image_placeholder
        if (count := np.count_nonzero(is_image)) != num_images:
            raise JanusError(
                f"The messages contain {count} {IMAGE_PLACEHOLDER}, but {num_images} images are given; put "
                f"one {IMAGE_PLACEHOLDER} per image into the content."
            )

        is_answer = np.zeros(len(tokens), bool)
        starts, ends = np.array(spans, np.int32).T
        for start, end in answers:
            is_answer |= (starts < end) & (ends > start)
        if not num_images:
            return self._sequence(Task.TEXT, tokens, is_answer)
        tokens, is_answer, und_patch_index = self._expand_images(tokens, is_answer & ~is_image, is_image)
        return self._sequence(Task.UNDERSTANDING, tokens, is_answer, und_patch_index=und_patch_index)

    def with_input_images(
        self, sequence: TokenSequence, images: Sequence[ImageSource], background: Background = "none"
    ) -> TokenSequence:
        """Returns a sequence from `understanding_tokens` with its images.

        Raises:
          JanusError: An image is unreadable.
        """
        opened = (open_image(image, background=background) for image in images)
        prepared = [prepare_understanding(image, self.und_image_size, self.min_side) for image in opened]
        return dataclasses.replace(sequence, und_images=_stack_images(prepared, self.und_image_size))

    def text_sequence(self, text: str) -> TokenSequence:
        """Tokenizes a document, with begin-of-sentence and end-of-sentence. All tokens but the first are predicted."""
        tokens = np.array([*self.tokenizer.encode(text), self.tokenizer.special.eos], np.int32)
        return self._sequence(Task.TEXT, tokens, np.arange(len(tokens)) > 0)

    def generation_prompt(self, prompt: str) -> TokenSequence:
        """Tokenizes the description of an image to generate. The sequence ends with begin-of-image."""
        tokens = np.array(self._prompt_ids(prompt), np.int32)
        return self._sequence(Task.GENERATION, tokens, np.zeros(len(tokens), bool))

    def generation_sequence(
        self,
        prompt: str,
        image: ImageSource | None,
        rng: np.random.Generator | None = None,
        end_of_image: bool = False,
        *,
        background: Background = "none",
    ) -> TokenSequence:
        """Tokenizes a prompt and its target image, for training.

        Args:
          prompt: Description of the image.
          image: The image. None if its image tokens are precomputed.
          rng: Samples the position of the crop. None: the center.
          end_of_image: Whether end-of-image follows the image. The papers end the sequence with the image.
          background: Background of transparent pixels, see `Background`.

        Raises:
          JanusError: The image is unreadable.
        """
        sequence = self.generation_tokens(prompt, end_of_image)
        return sequence if image is None else self.with_target_image(sequence, image, rng, background=background)

    def generation_tokens(self, prompt: str, end_of_image: bool = False) -> TokenSequence:
        """Returns the sequence of a prompt and its target image, without the image. See `generation_sequence`."""
        ids, special = self._prompt_ids(prompt), self.tokenizer.special
        start, end = len(ids), len(ids) + self.num_gen_tokens
        tokens = np.full(end + end_of_image, special.image_placeholder, np.int32)
        tokens[:start] = ids
        tokens[end:] = special.end_of_image
        gen_token_index = np.full(len(tokens), NO_IMAGE, np.int32)
        gen_token_index[start:end] = np.arange(self.num_gen_tokens)
        answer_mask = np.zeros(len(tokens), bool)
        return self._sequence(Task.GENERATION, tokens, answer_mask, gen_token_index=gen_token_index)

    def with_target_image(
        self,
        sequence: TokenSequence,
        image: ImageSource,
        rng: np.random.Generator | None = None,
        *,
        background: Background = "none",
    ) -> TokenSequence:
        """Returns a sequence from `generation_tokens` with its image. See `generation_sequence`.

        Raises:
          JanusError: The image is unreadable.
        """
        prepared = prepare_generation(open_image(image, background=background), self.gen_image_size, rng)
        return dataclasses.replace(sequence, gen_images=prepared[None])

    def unconditional_sequence(self, sequence: TokenSequence) -> TokenSequence:
        """Returns the unconditional sequence of a generation sequence, for classifier-free guidance.

        Padding replaces all tokens of the prompt but the first and the last (Janus, arXiv 2410.13848, section 3.4). The
        prompt is the whole sequence, or the part before the target image if the sequence contains one.
        """
        is_image = sequence.gen_token_index != NO_IMAGE
        prompt_length = int(is_image.argmax()) if is_image.any() else len(sequence)
        tokens = sequence.tokens.copy()
        tokens[1 : prompt_length - 1] = self.tokenizer.special.pad
        return dataclasses.replace(sequence, tokens=tokens)

    def left_pad(self, sequences: Sequence[TokenSequence], length: int | None = None) -> Batch:
        """Batches prompts of different lengths, with padding on the left.

        Each sequence is segment 1, and its positions start at 0.

        Args:
          sequences: The prompts.
          length: Length of the batch. Default: the length of the longest sequence.

        Raises:
          JanusError: A sequence is longer than `length`.
        """
        longest = max(map(len, sequences), default=0)
        length = longest if length is None else length
        if longest > length:
            raise JanusError(f"A sequence of the batch has {longest} tokens; the maximum is {length}.")
        num_und_images = max((len(sequence.und_images) for sequence in sequences), default=0)
        num_gen_images = max((len(sequence.gen_images) for sequence in sequences), default=0)

        def filled(value: int) -> Int[np.ndarray, "B L"]:
            return np.full((len(sequences), length), value, np.int32)

        batch = Batch(
            tokens=filled(self.tokenizer.special.pad),
            segment_ids=filled(PADDING_SEGMENT),
            positions=filled(0),
            und_patch_index=filled(NO_IMAGE),
            gen_token_index=filled(NO_IMAGE),
            und_images=_blank_images(self.und_image_size, len(sequences), num_und_images),
            gen_images=_blank_images(self.gen_image_size, len(sequences), num_gen_images),
        )
        for index, sequence in enumerate(sequences):
            unpadded = np.s_[index, length - len(sequence) :]
            batch.tokens[unpadded] = sequence.tokens
            batch.segment_ids[unpadded] = PADDING_SEGMENT + 1
            batch.positions[unpadded] = np.arange(len(sequence))
            batch.und_patch_index[unpadded] = sequence.und_patch_index
            batch.gen_token_index[unpadded] = sequence.gen_token_index
            batch.und_images[index, : len(sequence.und_images)] = sequence.und_images
            batch.gen_images[index, : len(sequence.gen_images)] = sequence.gen_images
        return batch

    def _prompt_ids(self, prompt: str) -> list[int]:
        messages: list[Message] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]
        return self.tokenizer.encode(self.template.render(messages).text + BEGIN_OF_IMAGE)

    def _expand_images(
        self, tokens: Int[np.ndarray, "T"], is_answer: Bool[np.ndarray, "T"], is_image: Bool[np.ndarray, "T"]
    ) -> tuple[Int[np.ndarray, "L"], Bool[np.ndarray, "L"], Int[np.ndarray, "L"]]:
        """Expands each placeholder to the positions of its image. Returns tokens, is_answer and und_patch_index."""
        n, special = self.num_und_tokens, self.tokenizer.special
        widths = np.where(is_image, n + 2, 1)
        starts = (np.cumsum(widths) - widths)[is_image]
        tokens, is_answer = np.repeat(tokens, widths), np.repeat(is_answer, widths)
        tokens[starts] = special.begin_of_image
        tokens[starts + n + 1] = special.end_of_image
        und_patch_index = np.full(len(tokens), NO_IMAGE, np.int32)
        patches = np.arange(n)
        und_patch_index[starts[:, None] + 1 + patches] = np.arange(len(starts))[:, None] * n + patches
        return tokens, is_answer, und_patch_index

    def _sequence(
        self,
        task: Task,
        tokens: Int[np.ndarray, "L"],
        answer_mask: Bool[np.ndarray, "L"],
        *,
        und_patch_index: Int[np.ndarray, "L"] | None = None,
        gen_token_index: Int[np.ndarray, "L"] | None = None,
    ) -> TokenSequence:
        """Returns a sequence without images."""
        no_image = np.full(len(tokens), NO_IMAGE, np.int32)
        return TokenSequence(
            task=task,
            tokens=tokens,
            answer_mask=answer_mask,
            und_patch_index=no_image if und_patch_index is None else und_patch_index,
            gen_token_index=no_image if gen_token_index is None else gen_token_index,
            und_images=_blank_images(self.und_image_size, 0),
            gen_images=_blank_images(self.gen_image_size, 0),
        )


def _blank_images(side: int, *counts: int) -> UInt8[np.ndarray, "... H W 3"]:
    return np.zeros((*counts, side, side, 3), np.uint8)


def _stack_images(images: Sequence[UInt8[np.ndarray, "H W 3"]], side: int) -> UInt8[np.ndarray, "U H W 3"]:
    # A single image, the usual case, is not copied.
    return images[0][None] if len(images) == 1 else np.stack(images) if images else _blank_images(side, 0)


def _image_sources(messages: Sequence[Message], images: Sequence[ImageSource] | None) -> list[ImageSource]:
    given = [images or (), *(message.get("images") or () for message in messages)]
    if any(isinstance(group, str | bytes) or not isinstance(group, Sequence) for group in given):
        raise JanusError("Images must be a list; put a single image into a list.")
    in_messages = [image for group in given[1:] for image in group]
    if in_messages and images:
        raise JanusError(
            f"The messages contain {len(in_messages)} images and `images` {len(images)} more; use one of the two."
        )
    return in_messages or list(images or ())


def _read_settings(directory: Path, config: ModelConfig) -> tuple[int, str]:
    """Reads `min_side` and `system_prompt`, and checks that the other settings of the files agree with the config."""
    side, patches = config.und_encoder.image_size, config.und_encoder.num_patches
    remedy = "copy it from the released checkpoint again"
    processor_file, file = directory / "processor_config.json", directory / "preprocessor_config.json"
    processor, values = read_json_if_exists(processor_file, remedy), read_json_if_exists(file, remedy)
    prompt = processor.get("system_prompt", UNDERSTANDING_SYSTEM_PROMPT)
    if not isinstance(prompt, str):
        raise JanusError(f"{processor_file}: system_prompt is {prompt!r:.80}; it must be text.")
    _check_agreement(processor_file, "num_image_tokens", processor.get("num_image_tokens", patches), patches)
    # transformers 5 writes the image settings into processor_config.json.
    if isinstance(nested := processor.get("image_processor"), dict) and not values:
        file, values = processor_file, nested
    size = values.get("size")  # transformers' name for image_size; an object.
    for found in (values.get("image_size", side), *(size.values() if isinstance(size, dict) else ())):
        _check_agreement(file, "image_size", found, side)
    for name in ("image_mean", "image_std"):
        _check_agreement(file, name, values.get(name) or [IMAGE_MEAN] * 3, [IMAGE_MEAN] * 3)
    min_side = values.get("min_size", min(14, side))
    if not isinstance(min_side, int) or not 0 < min_side <= side:
        raise JanusError(f"{file}: min_size is {min_side!r}; it must be a whole number from 1 to {side}.")
    return min_side, prompt


def _check_agreement(file: Path, name: str, found: object, expected: object) -> None:
    if found != expected:
        raise JanusError(f"{file}: {name} is {found!r}, but {expected!r} in the model's config; correct the wrong one.")
