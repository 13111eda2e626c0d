"""Builds training examples from records: token sequence, images and supervised positions."""

import dataclasses
import enum
import functools
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from janus_jax.batch import NO_IMAGE
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.errors import JanusError
from janus_jax.processing import (
    EDITING_STYLES,
    Edit,
    EditingStyle,
    Message,
    Processor,
    Task,
    TokenSequence,
    TooManyPixels,
    editing_tokens,
    open_image,
    with_editing_images,
)
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

# Punctuation with closing quotes or brackets, then white space. Ideographic punctuation needs no white space.
_SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s)|[。！？]+[”’」』）]*""")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|Mrs?|Ms|Dr|Prof|St|Jr|Sr|No|vs|cf|e\.g|i\.e|approx)\.$")


class Supervision(enum.Enum):
    """Which text tokens are targets."""

    TEXT = "text"
    """All text. Used in stages I and II (Janus, arXiv 2410.13848, §3.3)."""

    ANSWERS = "answers"
    """The assistant's turns with their end-of-sentence tokens. Used in stage III."""


@dataclass(frozen=True, eq=False)
class Example:
    """A token sequence and its targets.

    Attributes:
      example_id: "component/key", followed by "#epoch" from the second epoch on.
      sequence: Tokens and images.
      text_targets: See `Batch`. Positions are counted within the example.
      gen_starts: See `Batch`. Positions are counted within the example.
      gen_ids: Tokens of the target images, then of the context images. None without precomputed image tokens.
      gen_latents: See `Batch`. None without precomputed latents.
      truncated: Number of tokens that `truncate` removed.
    """

    example_id: str
    sequence: TokenSequence
    text_targets: Int[np.ndarray, " T"]
    gen_starts: Int[np.ndarray, " G"]
    gen_ids: Int[np.ndarray, "M N"] | None = None
    gen_latents: Float[np.ndarray, "G h w C"] | None = None
    truncated: int = 0

    @functools.cached_property
    def size(self) -> Int[np.ndarray, "4"]:
        """Numbers of tokens, input images, target images and text targets, see `packing.Budget.measure`."""
        sequence = self.sequence
        return np.array([len(sequence), len(sequence.und_images), len(self.gen_starts), len(self.text_targets)])


def text_targets(
    sequence: TokenSequence, supervision: Supervision, is_text: Bool[np.ndarray, " L"]
) -> Int[np.ndarray, " T"]:
    """Returns the positions of the text targets. A target is predicted from the position before it.

    An example of generation or editing has no text targets. Its targets are the image tokens (Janus, §3.3), see
    `Batch.gen_starts`. In other examples, all tokens except the begin-of-sentence token, image positions and the
    begin-of-image and end-of-image tokens around them can be targets, and the begin-of-image tokens that the assistant
    writes.
    """
    if sequence.task in (Task.GENERATION, Task.EDITING):
        return np.zeros(0, np.int32)
    is_target = sequence.answer_mask if supervision is Supervision.ANSWERS else is_text | sequence.answer_mask
    return np.flatnonzero(is_target).astype(np.int32)


def text_positions(sequence: TokenSequence) -> Bool[np.ndarray, " L"]:
    """Returns the mask of positions that hold text: no begin-of-sentence token, image, or token next to an image."""
    image = (sequence.und_patch_index != NO_IMAGE) | (sequence.gen_token_index != NO_IMAGE)
    excluded = image.copy()
    excluded[:-1] |= image[1:]
    excluded[1:] |= image[:-1]
    excluded[:1] = True
    return ~excluded


def first_sentence(caption: str) -> str:
    """Returns the first sentence of a caption."""
    caption = caption.strip()
    for end in _SENTENCE_END.finditer(caption):
        sentence = caption[: end.end()]
        if sentence.endswith(".") and _ABBREVIATION.search(sentence):
            continue
        return sentence
    return caption


@dataclass(frozen=True)
class _RecordRandom:
    """Random numbers of a record: one per purpose, so that changing one probability does not affect other choices."""

    seed: int
    key: str
    epoch: int

    def bits(self, purpose: str) -> int:
        """Returns a random integer of 64 bits. Each purpose, such as the crop, has its own."""
        text = f"{self.seed}/{self.epoch}/{purpose}/{self.key}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    def uniform(self, purpose: str) -> float:
        """Returns a random number in [0, 1). Each purpose, such as the crop, has its own."""
        return (self.bits(purpose) >> 11) * 2.0**-53


@dataclass(frozen=True)
class ExampleBuilder:
    """Builds examples from records.

    Randomness depends only on the seed, the record's key and the epoch, so every process builds the same example.

    Attributes:
      processor: Processor of the model.
      supervision: Which text tokens are targets.
      drop_condition: Probability that the prompt of a generation example is replaced by pad tokens, for classifier-free
        guidance.
      first_sentence: Probability that a caption is shortened to its first sentence (Janus, §4.1).
      random_crop: Whether to crop target images at a random position along their long side instead of the center.
      precomputed_image_tokens: Whether to use the image tokens of the records instead of the pixels of target images.
        For JanusFlow: whether to use the latents of the records, in addition to the pixels of the center crop.
      seed: Seed of the randomness.
      editing: Format of edits, with the probabilities of dropping source images and instructions.
      interleaved_features: Whether an input image repeats each image that the assistant generates in a conversation.
    """

    processor: Processor
    supervision: Supervision = Supervision.TEXT
    drop_condition: float = 0.1
    first_sentence: float = 0.25
    random_crop: bool = False
    precomputed_image_tokens: bool = False
    seed: int = 0
    editing: EditingStyle = EDITING_STYLES["janus_4o"]
    interleaved_features: bool = False

    def __call__(self, record: Record, epoch: int = 0, example_id: str = "") -> Example:
        """Builds the example of a record.

        Args:
          record: The record.
          epoch: Number of times the record was read before.
          example_id: Id of the example. Default: the record's key.

        Raises:
          RejectedRecord: The record is not valid for the model, or has no targets.
        """
        return self.start(record, epoch, example_id)()

    def start(self, record: Record, epoch: int = 0, example_id: str = "") -> Callable[[], Example]:
        """Builds an example except for its images. Returns a function that decodes them and returns the example.

        Both raise `RejectedRecord`, see `__call__`.
        """
        record = record.for_epoch(epoch)
        random = _RecordRandom(self.seed, record.key, epoch)
        sequence = self._sequence(record, random)
        is_text = text_positions(sequence)
        # An edit may have padding in place of its instruction.
        self._check_special_tokens(
            np.array(self.processor.tokenizer.encode(record.text, add_bos=False), np.int32)
            if record.task is Task.EDITING
            else sequence.tokens[is_text]
        )
        targets, starts = text_targets(sequence, self.supervision, is_text), self._gen_starts(sequence)
        gen_ids = gen_latents = None
        if record.task is Task.GENERATION and random.uniform("drop_condition") < self.drop_condition:
            sequence = self.processor.unconditional_sequence(sequence)
        if len(starts):
            if self._reads_image_tokens:
                gen_ids = self._image_tokens(record, random)
            elif self.precomputed_image_tokens:
                gen_latents = record.image_latents.reshape(1, *(self.processor.latent_shape or ()))
        elif not len(targets):
            raise RejectedRecord(RejectReason.NO_TARGETS, "it has no targets.")
        example = Example(example_id or record.key, sequence, targets, starts, gen_ids, gen_latents)
        return functools.partial(self._with_images, example, record, random)

    def _with_images(self, example: Example, record: Record, random: _RecordRandom) -> Example:
        sequence = example.sequence
        try:
            if sequence.task is Task.UNDERSTANDING:
                sequence = self.processor.with_input_images(sequence, record.images)
            elif sequence.task is Task.GENERATION and example.gen_ids is None:
                random_crop = self.random_crop and not self.precomputed_image_tokens
                rng = np.random.default_rng(random.bits("crop")) if random_crop else None
                sequence = self.processor.with_target_image(sequence, record.images[0], rng)
            elif sequence.task is Task.EDITING:
                sequence = self._with_editing_images(sequence, record, random)
            elif sequence.task is Task.INTERLEAVED:
                sequence = self.processor.with_interleaved_images(
                    sequence,
                    record.messages,
                    record.images,
                    features=self.interleaved_features,
                    precomputed=self._reads_image_tokens,
                )
        except JanusError as error:
            reason = RejectReason.IMAGE_TOO_LARGE if isinstance(error, TooManyPixels) else RejectReason.BAD_IMAGE
            raise RejectedRecord(reason, str(error)) from error
        return dataclasses.replace(example, sequence=sequence)

    def _gen_starts(self, sequence: TokenSequence) -> Int[np.ndarray, " G"]:
        """Returns the positions of the first tokens of the target images, see `Batch.gen_starts`."""
        image, token = np.divmod(sequence.gen_token_index, self.processor.num_gen_tokens)
        is_start = (image >= 0) & (image < sequence.num_target_images) & (token == 0)
        return np.flatnonzero(is_start).astype(np.int32)

    def _sequence(self, record: Record, random: _RecordRandom) -> TokenSequence:
        if record.task in (Task.EDITING, Task.INTERLEAVED) and self.processor.latent_shape is not None:
            message = f"its task is {record.task.value}, which JanusFlow does not support: its context has no latents."
            raise RejectedRecord(RejectReason.WRONG_TASK, message)
        try:
            if record.task is Task.EDITING:
                return self._editing_sequence(record, random)
            if record.task is Task.GENERATION:
                return self._generation_sequence(record, random)
            if record.task is Task.TEXT and not record.messages:
                return self._text_sequence(record)
            return self._conversation_sequence(record)
        except JanusError as error:
            reason = RejectReason.BAD_CONVERSATION if record.messages else RejectReason.MALFORMED
            raise RejectedRecord(reason, str(error)) from error

    @functools.cached_property
    def _is_special(self) -> Bool[np.ndarray, " V"]:
        special = self.processor.tokenizer.special
        table = np.zeros(len(self.processor.tokenizer), bool)
        table[[special.bos, special.pad, special.begin_of_image, special.end_of_image, special.image_placeholder]] = (
            True
        )
        return table

    def _text_sequence(self, record: Record) -> TokenSequence:
        if not record.text.strip():
            raise RejectedRecord(RejectReason.EMPTY_TEXT, "its text is empty.")
        return self.processor.text_sequence(record.text)

    def _conversation_sequence(self, record: Record) -> TokenSequence:
        messages = [_text_of_message(index, message) for index, message in enumerate(record.messages)]
        if not any(message["content"].replace(IMAGE_PLACEHOLDER, "").strip() for message in messages):
            raise RejectedRecord(RejectReason.EMPTY_TEXT, "its messages have no text.")
        expected = sum(message["content"].count(IMAGE_PLACEHOLDER) for message in messages)
        expected = max(expected, int(record.task is Task.UNDERSTANDING))
        if expected != len(record.images):
            raise RejectedRecord(
                RejectReason.NO_IMAGE if expected > len(record.images) else RejectReason.IMAGE_COUNT,
                f"it has {len(record.images)} images; its messages need {expected}.",
            )
        if record.task is not Task.INTERLEAVED:
            return self.processor.understanding_tokens(messages, len(record.images))
        if self._reads_image_tokens:
            self._check_image_tokens(record)
        return self.processor.interleaved_tokens(messages, len(record.images), features=self.interleaved_features)

    @property
    def _reads_image_tokens(self) -> bool:
        return self.precomputed_image_tokens and self.processor.latent_shape is None

    def _editing_sequence(self, record: Record, random: _RecordRandom) -> TokenSequence:
        if not record.text.strip():
            raise RejectedRecord(RejectReason.EMPTY_TEXT, "its instruction is empty.")
        if len(record.images) < 2:
            raise RejectedRecord(
                RejectReason.NO_IMAGE, f"it has {len(record.images)} images; it needs source images and a target image."
            )
        if self._reads_image_tokens:
            self._check_image_tokens(record)
        return editing_tokens(
            self.processor,
            self.editing,
            record.text,
            self._kept_sources(record, random),
            drop_instruction=random.uniform("drop_instruction") < self.editing.drop_instruction,
        )

    def _with_editing_images(self, sequence: TokenSequence, record: Record, random: _RecordRandom) -> TokenSequence:
        # Images whose tokens are precomputed and whose features are not read are not opened.
        *sources, target = record.images
        reads_tokens = not self._reads_image_tokens
        edit = Edit(
            record.text,
            [open_image(source) if reads_tokens or self.editing.features else None for source in sources],
            open_image(target) if reads_tokens else None,
        )
        kept = self._kept_sources(record, random) if reads_tokens else ()
        return with_editing_images(self.processor, self.editing, sequence, edit, kept=kept)

    def _kept_sources(self, record: Record, random: _RecordRandom) -> list[bool]:
        """Returns which source images of an edit keep their image tokens."""
        sources = range(len(record.images) - 1)
        return [random.uniform(f"drop_source/{number}") >= self.editing.drop_source for number in sources]

    def _image_tokens(self, record: Record, random: _RecordRandom) -> Int[np.ndarray, "M N"]:
        """Returns the precomputed tokens of the target images, then of the context images."""
        tokens = record.image_tokens.reshape(-1, self.processor.num_gen_tokens)
        if record.task is not Task.EDITING:
            return tokens
        return np.concatenate([tokens[-1:], tokens[:-1][self._kept_sources(record, random)]])

    def _generation_sequence(self, record: Record, random: _RecordRandom) -> TokenSequence:
        shorten = random.uniform("first_sentence") < self.first_sentence
        caption = first_sentence(record.text) if shorten else record.text
        if not caption.strip():
            raise RejectedRecord(RejectReason.EMPTY_TEXT, "its caption is empty.")
        if self._reads_image_tokens:
            self._check_image_tokens(record)
        elif len(record.images) != 1:
            raise RejectedRecord(
                RejectReason.IMAGE_COUNT if record.images else RejectReason.NO_IMAGE,
                f"it has {len(record.images)} target images; it needs one.",
            )
        elif self.precomputed_image_tokens:
            self._check_latents(record)
        return self.processor.generation_tokens(caption)

    def _check_image_tokens(self, record: Record) -> None:
        n = self.processor.num_gen_tokens * len(record.tokenized_images)
        if len(record.image_tokens) != n or record.image_tokens.min(initial=0) < 0:
            raise RejectedRecord(
                RejectReason.BAD_IMAGE_TOKENS,
                f"it has {len(record.image_tokens)} image tokens; the model needs {n}. Prepare it with --tokenizer.",
            )

    def _check_latents(self, record: Record) -> None:
        size = math.prod(self.processor.latent_shape or ())
        if len(record.image_latents) != size or not np.isfinite(record.image_latents).all():
            raise RejectedRecord(
                RejectReason.BAD_IMAGE_LATENTS,
                f"it has {len(record.image_latents)} latent values; the model needs {size} finite ones. Prepare it "
                f"with --tokenizer, a JanusFlow or its VAE.",
            )

    def _check_special_tokens(self, text: Int[np.ndarray, " T"]) -> None:
        # Text that contains a special token would be treated as an image or as padding.
        if (found := self._is_special[text]).any():
            token = self.processor.tokenizer.decode([int(text[found.argmax()])], skip_special_tokens=False)
            raise RejectedRecord(RejectReason.SPECIAL_TOKEN, f"its text contains the special token {token}.")


def _text_of_message(index: int, message: object) -> Message:
    # Other keys are dropped, because image paths in a message must not be opened.
    if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in ("role", "content")):
        raise RejectedRecord(
            RejectReason.BAD_CONVERSATION, f'message {index} is not an object with strings "role" and "content".'
        )
    return {"role": message["role"], "content": message["content"]}
