"""Messages and images to rows of places, and rows to batches."""

import dataclasses
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Int, UInt8

from janus_jax.batch import NO_IMAGE, PADDING_SEGMENT, Batch
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

IMAGE_MEAN = 0.5
"""Mean and standard deviation, of pixels in [0, 1], that every released model's images are normalised with."""


class Task(enum.Enum):
    """What a row teaches or asks."""

    TEXT = "text"
    UNDERSTANDING = "understanding"
    GENERATION = "generation"


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One sample: L places, and the U images to understand and G images to generate that fill some of them.

    Attributes:
      task: the kind of sample.
      tokens: text ids; at image places the id of the image placeholder.
      answer: where the assistant's own text stands, end-of-sentence included. These are the ids to predict, not the
        places they are predicted from. Image places are never part of it.
      und_patch_index: as in `Batch`.
      gen_token_index: as in `Batch`. Every id of an image to generate is to be predicted.
      und_images: the images to understand, RGB, 0..255.
      gen_images: the images to generate, RGB, 0..255.
    """

    task: Task
    tokens: Int[np.ndarray, "L"]
    answer: Bool[np.ndarray, "L"]
    und_patch_index: Int[np.ndarray, "L"]
    gen_token_index: Int[np.ndarray, "L"]
    und_images: UInt8[np.ndarray, "U H W 3"]
    gen_images: UInt8[np.ndarray, "G H2 W2 3"]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Processor:
    """Everything between a person's messages and the model's arrays, for one model.

    Attributes:
      tokenizer: of the model's directory.
      template: how the model writes conversations.
      und_image_size: side of an image to understand, in pixels.
      num_und_tokens: places that an image to understand takes, without begin-of-image and end-of-image.
      gen_image_size: side of an image to generate, in pixels.
      num_gen_tokens: ids, or patches of latents, of an image to generate.
      min_side: least length that the short side of an image to understand is scaled to.
      background: grey value, 0..255, around an image to understand that is not square.
      system_prompt: opens conversations about images, unless another is asked for.
      masks_padding: whether what stands in a dropped condition's place is masked, as JanusFlow's sampler does, or
        attended to, as Janus' does.
      latent_shape: height, width and channels of the latents of an image to generate; None where it is ids.
    """

    tokenizer: Tokenizer
    template: ConversationTemplate
    und_image_size: int = 384
    num_und_tokens: int = 576
    gen_image_size: int = 384
    num_gen_tokens: int = 576
    min_side: int = 14
    background: int = int(IMAGE_MEAN * 255)
    system_prompt: str = UNDERSTANDING_SYSTEM_PROMPT
    masks_padding: bool = False
    latent_shape: tuple[int, int, int] | None = None

    @classmethod
    def from_directory(cls, path: str | Path, config: ModelConfig) -> Self:
        """The processor of a model directory, released or converted.

        `tokenizer.json` must be there; `preprocessor_config.json` and `processor_config.json` may be. The latter's
        `system_prompt` is our own field, for models that were tuned with another.

        Raises:
          JanusError: the tokenizer is missing or corrupt, or a file contradicts `config`.
        """
        tokenizer = Tokenizer.from_directory(path)
        tokenizer.check_vocabulary(config.llm.vocab_size)
        return cls(
            tokenizer,
            TEMPLATES[config.conversation],
            und_image_size=config.und_encoder.image_size,
            num_und_tokens=config.und_encoder.num_patches,
            gen_image_size=config.gen_image_size,
            num_gen_tokens=config.num_gen_tokens,
            min_side=_released_min_side(Path(path), config),
            system_prompt=_system_prompt(Path(path)),
            masks_padding=isinstance(config, JanusFlowConfig),
            latent_shape=config.latent_shape,
        )

    def understanding_sequence(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageSource] | None = None,
        system_prompt: str | None = None,
    ) -> TokenSequence:
        """A conversation with any number of turns and images; without images, its task is text.

        Every `<image_placeholder>` becomes begin-of-image, the image's places and end-of-image.

        Args:
          messages: the turns. A conversation that ends with the user's is left open for the model's answer.
          images: the images in the order of their placeholders, where the messages themselves carry none.
          system_prompt: in place of the processor's; "" for none.

        Raises:
          JanusError: placeholders and images differ in number, an image is unreadable, or a message is wrong.
        """
        prompt = self.system_prompt if system_prompt is None else system_prompt
        text, answers = self.template.render_with_answers(messages, prompt)
        ids, spans = self.tokenizer.encode_with_spans(text)
        tokens = np.array(ids, np.int32)
        is_image = tokens == self.tokenizer.special.image_placeholder
        sources = _sources(messages, images)
        _check_counts(int(is_image.sum()), len(sources))

        answer = np.zeros(len(tokens), bool)
        starts, ends = np.array(spans, np.int32).T
        for start, end in answers:
            answer |= (starts < end) & (ends > start)
        return self._row(
            Task.UNDERSTANDING if sources else Task.TEXT,
            *self._with_image_places(tokens, answer & ~is_image, is_image),
            und_images=[
                prepare_understanding(open_image(source), self.und_image_size, self.min_side, self.background)
                for source in sources
            ],
        )

    def text_sequence(self, text: str) -> TokenSequence:
        """A plain document between begin- and end-of-sentence, all of it to be learnt."""
        tokens = np.array([*self.tokenizer.encode(text), self.tokenizer.special.eos], np.int32)
        return self._row(Task.TEXT, tokens, np.arange(len(tokens)) > 0)

    def generation_prompt(self, prompt: str) -> TokenSequence:
        """The request for an image of `prompt`, up to and with begin-of-image; the image's ids follow it."""
        messages: list[Message] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]
        tokens = np.array(self.tokenizer.encode(self.template.render(messages) + BEGIN_OF_IMAGE), np.int32)
        return self._row(Task.GENERATION, tokens, np.zeros(len(tokens), bool))

    def generation_sequence(
        self,
        prompt: str,
        image: ImageSource | None,
        rng: np.random.Generator | None = None,
        end_of_image: bool = False,
    ) -> TokenSequence:
        """A request and its image, for training.

        Args:
          prompt: the caption.
          image: the image that it describes; None where its ids are known, and only its places are wanted.
          rng: draws the image's crop; None for the middle.
          end_of_image: whether end-of-image closes the row. The papers supervise the image's ids alone.

        Raises:
          JanusError: the image is unreadable.
        """
        start = self.generation_prompt(prompt)
        special = self.tokenizer.special
        closing = [special.end_of_image] if end_of_image else []
        tokens = np.concatenate(
            [
                start.tokens,
                np.full(self.num_gen_tokens, special.image_placeholder, np.int32),
                np.array(closing, np.int32),
            ]
        )
        gen_token_index = np.full(len(tokens), NO_IMAGE, np.int32)
        gen_token_index[len(start) : len(start) + self.num_gen_tokens] = np.arange(self.num_gen_tokens)
        return self._row(
            Task.GENERATION,
            tokens,
            np.zeros(len(tokens), bool),
            gen_token_index=gen_token_index,
            gen_images=[] if image is None else [prepare_generation(open_image(image), self.gen_image_size, rng)],
        )

    def unconditional_prompt(self, tokens: Int[Any, "*B L"]) -> Int[np.ndarray, "*B L"]:
        """Prompts without their condition: all but the first and the last id are pad (and are attended to).

        The rows that guidance steers away from, Janus (arXiv 2410.13848, §3.4).
        """
        unconditional = np.array(tokens, np.int32)
        unconditional[..., 1:-1] = self.tokenizer.special.pad
        return unconditional

    def unconditional_sequence(self, row: TokenSequence) -> TokenSequence:
        """A generation row, with or without its image, without its condition."""
        is_image = row.gen_token_index != NO_IMAGE
        length = int(is_image.argmax()) if is_image.any() else len(row)
        tokens = np.concatenate([self.unconditional_prompt(row.tokens[:length]), row.tokens[length:]])
        return dataclasses.replace(row, tokens=tokens)

    def left_pad(
        self, rows: Sequence[TokenSequence], length: int | None = None, num_images: int | None = None
    ) -> Batch:
        """Rows of different lengths side by side, all ending at the same place, for the model to go on from.

        Each is segment 1, and its positions count from its first place.

        Args:
          rows: B of them.
          length: places a row, the longest row's by default.
          num_images: images to understand a row, padding included; by default as many as the row with most has.

        Raises:
          JanusError: a row does not fit.
        """
        length = self._size("places", length, [len(row) for row in rows])
        num_images = self._size("images", num_images, [len(row.und_images) for row in rows])
        num_gen_images = max((len(row.gen_images) for row in rows), default=0)

        def filled(value: int) -> Int[np.ndarray, "B L"]:
            return np.full((len(rows), length), value, np.int32)

        batch = Batch(
            tokens=filled(self.tokenizer.special.pad),
            segment_ids=filled(PADDING_SEGMENT),
            positions=filled(0),
            und_patch_index=filled(NO_IMAGE),
            gen_token_index=filled(NO_IMAGE),
            und_images=self._blank(self.und_image_size, len(rows), num_images),
            gen_images=self._blank(self.gen_image_size, len(rows), num_gen_images),
        )
        for index, row in enumerate(rows):
            places = np.s_[index, length - len(row) :]
            batch.tokens[places] = row.tokens
            batch.segment_ids[places] = PADDING_SEGMENT + 1
            batch.positions[places] = np.arange(len(row))
            batch.und_patch_index[places] = row.und_patch_index
            batch.gen_token_index[places] = row.gen_token_index
            batch.und_images[index, : len(row.und_images)] = row.und_images
            batch.gen_images[index, : len(row.gen_images)] = row.gen_images
        return batch

    def _with_image_places(
        self, tokens: Int[np.ndarray, "T"], answer: Bool[np.ndarray, "T"], is_image: Bool[np.ndarray, "T"]
    ) -> tuple[Int[np.ndarray, "L"], Bool[np.ndarray, "L"], Int[np.ndarray, "L"]]:
        """Every placeholder drawn out to the places of its image: tokens, answer, und_patch_index."""
        n, special = self.num_und_tokens, self.tokenizer.special
        widths = np.where(is_image, n + 2, 1)
        starts = (np.cumsum(widths) - widths)[is_image]
        tokens, answer = np.repeat(tokens, widths), np.repeat(answer, widths)
        tokens[starts] = special.begin_of_image
        tokens[starts + n + 1] = special.end_of_image
        und_patch_index = np.full(len(tokens), NO_IMAGE, np.int32)
        patches = np.arange(n)
        und_patch_index[starts[:, None] + 1 + patches] = np.arange(len(starts))[:, None] * n + patches
        return tokens, answer, und_patch_index

    def _row(
        self,
        task: Task,
        tokens: Int[np.ndarray, "L"],
        answer: Bool[np.ndarray, "L"],
        und_patch_index: Int[np.ndarray, "L"] | None = None,
        gen_token_index: Int[np.ndarray, "L"] | None = None,
        und_images: Sequence[UInt8[np.ndarray, "H W 3"]] = (),
        gen_images: Sequence[UInt8[np.ndarray, "H W 3"]] = (),
    ) -> TokenSequence:
        nowhere = np.full(len(tokens), NO_IMAGE, np.int32)
        return TokenSequence(
            task=task,
            tokens=tokens,
            answer=answer,
            und_patch_index=nowhere if und_patch_index is None else und_patch_index,
            gen_token_index=nowhere if gen_token_index is None else gen_token_index,
            und_images=_stacked(und_images) if und_images else self._blank(self.und_image_size, 0),
            gen_images=_stacked(gen_images) if gen_images else self._blank(self.gen_image_size, 0),
        )

    @staticmethod
    def _blank(side: int, *counts: int) -> UInt8[np.ndarray, "... H W 3"]:
        return np.zeros((*counts, side, side, 3), np.uint8)

    @staticmethod
    def _size(what: str, given: int | None, needed: Sequence[int]) -> int:
        most = max(needed, default=0)
        if given is not None and given < most:
            raise JanusError(
                f"Row {needed.index(most)} of the batch has {most} {what}, more than the {given} there is room for."
            )
        return most if given is None else given


def _stacked(images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> UInt8[np.ndarray, "U H W 3"]:
    # One image, the usual number, is not worth a copy.
    return images[0][None] if len(images) == 1 else np.stack(images)


def _sources(messages: Sequence[Message], images: Sequence[ImageSource] | None) -> list[ImageSource]:
    given = [images or (), *(message.get("images") or () for message in messages)]
    if any(isinstance(group, str | bytes) or not isinstance(group, Sequence) for group in given):
        raise JanusError("Images are given as a single one; put them into a list.")
    carried = [image for group in given[1:] for image in group]
    if carried and images:
        raise JanusError(
            f"The messages carry {len(carried)} images and {len(images)} more are given apart; give them in one way."
        )
    return carried or list(images or ())


def _check_counts(placeholders: int, images: int) -> None:
    if placeholders == images:
        return
    if not placeholders:
        raise JanusError(
            f"{images} images are given, but no message says where they belong; put {IMAGE_PLACEHOLDER} into the "
            f"content once for each."
        )
    raise JanusError(
        f"The messages hold {placeholders} {IMAGE_PLACEHOLDER}, but {images} images are given; each needs the other."
    )


_PROCESSOR_FILE = "processor_config.json"
_REMEDY = "copy it from the released checkpoint again"


def _system_prompt(directory: Path) -> str:
    """The directory's own, which the releases do not write down, or theirs."""
    file = directory / _PROCESSOR_FILE
    prompt = read_json_if_exists(file, _REMEDY).get("system_prompt", UNDERSTANDING_SYSTEM_PROMPT)
    if not isinstance(prompt, str):
        raise JanusError(f"{file}: system_prompt is {prompt!r:.80}; it must be text.")
    return prompt


def _released_min_side(directory: Path, config: ModelConfig) -> int:
    """The one number of the directory's image settings that no config holds; the others are checked against it."""
    side, patches = config.und_encoder.image_size, config.und_encoder.num_patches
    processor_file = directory / _PROCESSOR_FILE
    processor = read_json_if_exists(processor_file, _REMEDY)
    _check_agreement(processor_file, "num_image_tokens", processor.get("num_image_tokens", patches), patches)

    file = directory / "preprocessor_config.json"
    values = read_json_if_exists(file, _REMEDY)
    if isinstance(nested := processor.get("image_processor"), dict) and not values:  # transformers 5 writes one file
        file, values = processor_file, nested
    size = values.get("size")  # transformers' name for image_size, an object
    for found in (values.get("image_size", side), *(size.values() if isinstance(size, dict) else ())):
        _check_agreement(file, "image_size", found, side)
    for name in ("image_mean", "image_std"):
        _check_agreement(file, name, values.get(name) or [IMAGE_MEAN] * 3, [IMAGE_MEAN] * 3)
    min_side = values.get("min_size", min(14, side))
    if not isinstance(min_side, int) or not 0 < min_side <= side:
        raise JanusError(f"{file}: min_size is {min_side!r}; it must be a whole number from 1 to {side}.")
    return min_side


def _check_agreement(file: Path, name: str, found: object, expected: object) -> None:
    if found != expected:
        raise JanusError(
            f"{file}: {name} is {found!r}, but the model's config makes it {expected!r}; correct the wrong one."
        )
