"""Converts messages and images to token sequences, and token sequences to batches."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Bool, Int

from janus_jax.batch import NO_IMAGE, PADDING_SEGMENT, Batch
from janus_jax.buckets import as_path
from janus_jax.config import JanusFlowConfig, ModelConfig
from janus_jax.errors import JanusError
from janus_jax.processing.conversation import (
    TEMPLATES,
    UNDERSTANDING_SYSTEM_PROMPT,
    ConversationTemplate,
    Message,
    Rendered,
    assistant_images,
)
from janus_jax.processing.images import ImageSource, open_image, prepare_generation, prepare_understanding
from janus_jax.processing.sequences import (
    ImageLayout,
    ImageSpan,
    Span,
    Task,
    TextSpan,
    TokenSequence,
    blank_images,
    stack_images,
)
from janus_jax.processing.settings import DEFAULT_MIN_SIDE, read_settings
from janus_jax.processing.tokenizer import BEGIN_OF_IMAGE, IMAGE_PLACEHOLDER, Tokenizer
from janus_jax.processing.transparency import Background


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
      interleaved_features: Whether an input image repeats each image that the assistant generates in a conversation, as
        in the model's training data (`interleaved_sequence`).
      latent_shape: Height, width and channels of a target image's latents (JanusFlow). None: the model generates image
        tokens (Janus).
    """

    tokenizer: Tokenizer
    template: ConversationTemplate
    und_image_size: int = 384
    num_und_tokens: int = 576
    gen_image_size: int = 384
    num_gen_tokens: int = 576
    min_side: int = DEFAULT_MIN_SIDE
    system_prompt: str = UNDERSTANDING_SYSTEM_PROMPT
    masks_padding: bool = False
    interleaved_features: bool = False
    latent_shape: tuple[int, int, int] | None = None

    @property
    def layout(self) -> ImageLayout:
        """How images are written in the model's token sequences."""
        return ImageLayout(
            self.tokenizer.special,
            num_und_tokens=self.num_und_tokens,
            num_gen_tokens=self.num_gen_tokens,
            und_image_size=self.und_image_size,
            gen_image_size=self.gen_image_size,
            has_latents=self.latent_shape is not None,
        )

    @classmethod
    def from_directory(cls, path: str | Path, config: ModelConfig) -> Self:
        """Reads a processor from a model folder.

        `tokenizer.json` is required; `preprocessor_config.json` and `processor_config.json` are optional. Two
        fields of `processor_config.json` are specific to this project: `system_prompt` replaces the released models'
        system prompt, and `interleaved_features` is the attribute of this name.

        Raises:
          JanusError: The tokenizer is missing or corrupt, or a file contradicts `config`.
        """
        tokenizer = Tokenizer.from_directory(path)
        tokenizer.check_vocabulary(config.llm.vocab_size)
        settings = read_settings(as_path(path), config)
        return cls(
            tokenizer,
            TEMPLATES[config.conversation],
            und_image_size=config.und_encoder.image_size,
            num_und_tokens=config.und_encoder.num_patches,
            gen_image_size=config.gen_image_size,
            num_gen_tokens=config.num_gen_tokens,
            min_side=settings.min_side,
            system_prompt=settings.system_prompt,
            masks_padding=isinstance(config, JanusFlowConfig),
            interleaved_features=settings.interleaved_features,
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
        sources = image_sources(messages, images)
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
        rendered = self.template.render(messages, prompt)
        spans = self.spans(rendered, num_images, lambda number, is_answer: [ImageSpan("input")])
        return self.layout.sequence(Task.UNDERSTANDING if num_images else Task.TEXT, spans)

    def with_input_images(
        self, sequence: TokenSequence, images: Sequence[ImageSource], background: Background = "none"
    ) -> TokenSequence:
        """Returns a sequence from `understanding_tokens` with its images.

        Raises:
          JanusError: An image is unreadable.
        """
        opened = (open_image(image, background=background) for image in images)
        prepared = [prepare_understanding(image, self.und_image_size, self.min_side) for image in opened]
        return dataclasses.replace(sequence, und_images=stack_images(prepared, self.und_image_size))

    def interleaved_sequence(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageSource],
        system_prompt: str | None = None,
        *,
        features: bool = False,
    ) -> TokenSequence:
        """Tokenizes a conversation in which the assistant generates images, for training.

        Images in turns of the user are input images. Images in turns of the assistant are target images; the
        assistant's begin-of-image tokens are predicted.

        Args:
          messages: The messages.
          images: Images in the order of their placeholders.
          system_prompt: Replaces the processor's system prompt. "" removes it.
          features: Whether an input image, with the features of the understanding encoder, repeats each target image
            after it.

        Raises:
          JanusError: See `understanding_sequence`. Or the model is a JanusFlow, and a target image is not the end.
        """

        sequence = self.interleaved_tokens(messages, len(images), system_prompt, features=features)
        return self.with_interleaved_images(sequence, messages, images, features=features)

    def interleaved_tokens(
        self, messages: Sequence[Message], num_images: int, system_prompt: str | None = None, *, features: bool = False
    ) -> TokenSequence:
        """Returns the sequence of a conversation without its images. See `interleaved_sequence`.

        Raises:
          JanusError: See `interleaved_sequence`.
        """

        def image_spans(number: int, is_answer: bool) -> list[ImageSpan]:
            return self.interleaved_spans(is_answer, features=features)

        prompt = self.system_prompt if system_prompt is None else system_prompt
        spans = self.spans(self.template.render(messages, prompt), num_images, image_spans)
        return self.layout.sequence(Task.INTERLEAVED, spans)

    def interleaved_spans(self, is_answer: bool, *, features: bool) -> list[ImageSpan]:
        """Returns the spans of an image in a conversation in which the assistant generates images.

        Args:
          is_answer: Whether the image is in a turn of the assistant.
          features: See `interleaved_sequence`.
        """
        target = [ImageSpan("target", is_answer=True)] if is_answer else []
        return [*target, ImageSpan("input")] if features or not is_answer else target

    def with_interleaved_images(
        self,
        sequence: TokenSequence,
        messages: Sequence[Message],
        images: Sequence[ImageSource],
        *,
        features: bool = False,
        precomputed: bool = False,
    ) -> TokenSequence:
        """Returns a sequence from `interleaved_tokens` with its images. See `interleaved_sequence`.

        Args:
          sequence: The sequence.
          messages: Its messages.
          images: Images in the order of their placeholders.
          features: Whether an input image repeats each target image.
          precomputed: Whether the tokens of target images are precomputed, so that only input images need pixels.

        Raises:
          JanusError: An image is unreadable.
        """
        in_answers = set(assistant_images(messages))
        inputs, targets = [], []
        for number, source in enumerate(images):
            is_input = features or number not in in_answers
            is_target = number in in_answers and not precomputed
            if not (is_input or is_target):
                continue
            opened = open_image(source)
            if is_input:
                inputs.append(prepare_understanding(opened, self.und_image_size, self.min_side))
            if is_target:
                targets.append(prepare_generation(opened, self.gen_image_size))
        return dataclasses.replace(
            sequence,
            und_images=stack_images(inputs, self.und_image_size),
            gen_images=stack_images(targets, self.gen_image_size),
        )

    def spans(
        self, rendered: Rendered, num_images: int, image_spans: Callable[[int, bool], Sequence[ImageSpan]]
    ) -> list[Span]:
        """Tokenizes a rendered conversation, and replaces each placeholder with spans of its image.

        Args:
          rendered: The conversation.
          num_images: Number of images.
          image_spans: Returns the spans of an image, given its number and whether it is in an answer.

        Raises:
          JanusError: The numbers of placeholders and images differ.
        """
        ids, ranges = self.tokenizer.encode_with_spans(rendered.text)
        tokens, is_answer = np.array(ids, np.int32), overlaps(ranges, rendered.answers)
        places = np.flatnonzero(tokens == self.tokenizer.special.image_placeholder)
        if len(places) != num_images:
            raise JanusError(
                f"The messages contain {len(places)} {IMAGE_PLACEHOLDER}, but {num_images} images are given; put "
                f"one {IMAGE_PLACEHOLDER} per image into the content."
            )
        spans: list[Span] = []
        start = 0
        for number, place in enumerate(places.tolist()):
            spans.append(TextSpan(tokens[start:place], is_answer[start:place]))
            spans.extend(image_spans(number, bool(is_answer[place])))
            start = place + 1
        return [*spans, TextSpan(tokens[start:], is_answer[start:])]

    def text_sequence(self, text: str) -> TokenSequence:
        """Tokenizes a document, with begin-of-sentence and end-of-sentence. All tokens but the first are predicted."""
        tokens = np.array([*self.tokenizer.encode(text), self.tokenizer.special.eos], np.int32)
        return self.layout.sequence(Task.TEXT, [TextSpan(tokens, np.arange(len(tokens)) > 0)])

    def generation_prompt(self, prompt: str) -> TokenSequence:
        """Tokenizes the description of an image to generate. The sequence ends with begin-of-image."""
        messages: list[Message] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]
        tokens = np.array(self.tokenizer.encode(self.template.render(messages).text + BEGIN_OF_IMAGE), np.int32)
        return self.layout.sequence(Task.GENERATION, [TextSpan(tokens, np.zeros(len(tokens), bool))])

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
        # Begin-of-image is the end of the prompt and the start of the image.
        text = self.generation_prompt(prompt).tokens[:-1]
        spans: list[Span] = [TextSpan(text, np.zeros(len(text), bool)), ImageSpan("target", end=end_of_image)]
        return self.layout.sequence(Task.GENERATION, spans)

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
            und_images=blank_images(self.und_image_size, len(sequences), num_und_images),
            gen_images=blank_images(self.gen_image_size, len(sequences), num_gen_images),
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


def overlaps(ranges: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> Bool[np.ndarray, "T"]:
    """Returns for each character range whether it has a character in one of the other ranges."""
    starts, ends = np.array(ranges, np.int32).T
    found = np.zeros(len(ranges), bool)
    for start, end in others:
        found |= (starts < end) & (ends > start)
    return found & (starts < ends)


def image_sources(messages: Sequence[Message], images: Sequence[ImageSource] | None) -> list[ImageSource]:
    """Returns the images of a conversation, from its messages or from `images`.

    Raises:
      JanusError: Images are not a list, or both contain images.
    """
    given = [images or (), *(message.get("images") or () for message in messages)]
    if any(isinstance(group, str | bytes) or not isinstance(group, Sequence) for group in given):
        raise JanusError("Images must be a list; put a single image into a list.")
    in_messages = [image for group in given[1:] for image in group]
    if in_messages and images:
        raise JanusError(
            f"The messages contain {len(in_messages)} images and `images` {len(images)} more; use one of the two."
        )
    return in_messages or list(images or ())
