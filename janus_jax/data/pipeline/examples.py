"""What a record teaches: the row of places that it becomes, and which of them are supervised."""

import enum
import hashlib
import math
import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from janus_jax.batch import NO_IMAGE
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.errors import JanusError
from janus_jax.processing import Message, Processor, Task, TokenSequence, TooManyPixels, open_image
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

# The mark and what closes behind it, then white space; an ideographic mark needs none.
_SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s)|[。！？]+[”’」』）]*""")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|Mrs?|Ms|Dr|Prof|St|Jr|Sr|No|vs|cf|e\.g|i\.e|approx)\.$")


class Supervision(enum.Enum):
    """Which text is learnt."""

    TEXT = "text"
    """All of it: stages I and II (Janus, arXiv 2410.13848, §3.3)."""

    ANSWERS = "answers"
    """What the assistant says, end-of-sentence included; prompts are masked: stage III."""


def text_targets(row: TokenSequence, supervision: Supervision) -> Int[np.ndarray, " T"]:
    """The places whose text id is to be predicted, each from the place before it.

    The one place that decides on supervision. Generation is supervised on its image ids alone, all of them, the first
    included (Janus, §3.3); `Batch.gen_starts` says where those are. Elsewhere begin-of-sentence, image places and the
    begin- and end-of-image around them are given, never learnt.
    """
    if row.task is Task.GENERATION:
        return np.zeros(0, np.int32)
    learnt = is_text(row)
    if supervision is Supervision.ANSWERS:
        learnt &= row.answer
    return np.flatnonzero(learnt).astype(np.int32)


def is_text(row: TokenSequence) -> Bool[np.ndarray, "L"]:
    """Where a row holds text of its own: all but begin-of-sentence, images and their begin and end."""
    image = (row.und_patch_index != NO_IMAGE) | (row.gen_token_index != NO_IMAGE)
    given = image.copy()
    given[:-1] |= image[1:]
    given[1:] |= image[:-1]
    given[:1] = True
    return ~given


def first_sentence(caption: str) -> str:
    """The caption up to the end of its first sentence; all of it where there is but one."""
    caption = caption.strip()
    for end in _SENTENCE_END.finditer(caption):
        start = caption[: end.end()]
        if start.endswith(".") and _ABBREVIATION.search(start):
            continue
        return start
    return caption


@dataclass(frozen=True)
class Chance:
    """What is random about a record, each thing by itself: a share that is changed moves no other draw."""

    seed: int
    key: str
    epoch: int

    def bits(self, what: str) -> int:
        """64 random bits."""
        text = f"{self.seed}/{self.epoch}/{what}/{self.key}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    def of(self, what: str) -> float:
        """A number in [0, 1)."""
        return (self.bits(what) >> 11) * 2.0**-53


@dataclass(frozen=True)
class ExampleBuilder:
    """Makes rows of records, with all that is random about a record.

    Randomness follows from (`seed`, the record's key, epoch) alone, so that a record becomes the same row whichever
    process reads it, and when.

    Attributes:
      processor: of the model to be trained.
      drop_condition: share of the generation samples whose prompt becomes pad tokens, for guidance.
      first_sentence: share of the captions that lose all but their first sentence (Janus, §4.1).
      random_crop: whether the part of an image to generate along its long side is drawn; else it is the middle.
      precomputed_image_tokens: Uses image tokens stored in the records instead of the pixels of target images. For
        JanusFlow: stored latents, next to the pixels of the center crop.
      seed: of the randomness.
    """

    processor: Processor
    drop_condition: float = 0.1
    first_sentence: float = 0.25
    random_crop: bool = False
    precomputed_image_tokens: bool = False
    seed: int = 0

    def __call__(self, record: Record, epoch: int) -> TokenSequence:
        """The record's row.

        Args:
          record: what is learnt.
          epoch: how often it was read before.

        Raises:
          RejectedRecord: the record gives no row.
        """
        chance = Chance(self.seed, record.key, epoch)
        drop_condition = chance.of("drop_condition") < self.drop_condition
        shorten = chance.of("first_sentence") < self.first_sentence
        try:
            if record.task is Task.GENERATION:
                row = self._generation_row(record, first_sentence(record.text) if shorten else record.text, chance)
            elif record.task is Task.TEXT and not record.messages:
                row = self._text_row(record)
            else:
                row = self._conversation_row(record)
        except RejectedRecord:
            raise
        except JanusError as error:
            raise RejectedRecord(_cause(record), str(error)) from error
        self._check_special_tokens(row)
        return self.processor.unconditional_sequence(row) if row.task is Task.GENERATION and drop_condition else row

    def _text_row(self, record: Record) -> TokenSequence:
        if not record.text.strip():
            raise RejectedRecord(RejectReason.EMPTY_TEXT, "its text is empty.")
        return self.processor.text_sequence(record.text)

    def _conversation_row(self, record: Record) -> TokenSequence:
        messages = [_plain(index, message) for index, message in enumerate(record.messages)]
        if not any(message["content"].replace(IMAGE_PLACEHOLDER, "").strip() for message in messages):
            raise RejectedRecord(RejectReason.EMPTY_TEXT, "its messages say nothing.")
        promised = sum(message["content"].count(IMAGE_PLACEHOLDER) for message in messages)
        promised = max(promised, int(record.task is Task.UNDERSTANDING))
        if promised != len(record.images):
            raise RejectedRecord(
                RejectReason.NO_IMAGE if promised > len(record.images) else RejectReason.IMAGE_COUNT,
                f"it has {len(record.images)} images where {promised} are spoken of.",
            )
        return self.processor.understanding_sequence(messages, record.images)

    def _generation_row(self, record: Record, caption: str, chance: Chance) -> TokenSequence:
        if not caption.strip():
            raise RejectedRecord(RejectReason.EMPTY_TEXT, "its caption is empty.")
        if self.precomputed_image_tokens and self.processor.latent_shape is None:
            return self._row_of_ids(record, caption)
        if len(record.images) != 1:
            raise RejectedRecord(
                RejectReason.IMAGE_COUNT if record.images else RejectReason.NO_IMAGE,
                f"it has {len(record.images)} images where one is to be generated.",
            )
        if self.precomputed_image_tokens:
            self._check_latents(record)
        cropped = self.random_crop and not self.precomputed_image_tokens
        rng = np.random.default_rng(chance.bits("crop")) if cropped else None
        return self.processor.generation_sequence(caption, record.images[0], rng)

    def _row_of_ids(self, record: Record, caption: str) -> TokenSequence:
        n = self.processor.gen_tokens
        if len(record.image_tokens) != n or record.image_tokens.min() < 0:
            raise RejectedRecord(
                RejectReason.BAD_IMAGE_TOKENS,
                f"it has {len(record.image_tokens)} image ids where the model has {n}; prepare it with --tokenizer.",
            )
        return self.processor.generation_sequence(caption, None)

    def _check_latents(self, record: Record) -> None:
        wanted = math.prod(self.processor.latent_shape or ())
        if len(record.image_latents) != wanted or not np.isfinite(record.image_latents).all():
            raise RejectedRecord(
                RejectReason.BAD_IMAGE_LATENTS,
                f"it has {len(record.image_latents)} numbers of latents where the model has {wanted}; prepare it with "
                f"--tokenizer, of a JanusFlow or its VAE.",
            )

    def _check_special_tokens(self, row: TokenSequence) -> None:
        """Text that spells a marker would stand for an image, or for padding, that is not there."""
        special = self.processor.tokenizer.special
        markers = (special.bos, special.pad, special.begin_of_image, special.end_of_image, special.image_placeholder)
        text = row.tokens[is_text(row)]
        if (found := np.logical_or.reduce([text == marker for marker in markers])).any():
            token = self.processor.tokenizer.decode([int(text[found.argmax()])], skip_special_tokens=False)
            raise RejectedRecord(RejectReason.SPECIAL_TOKEN, f"its text spells {token}.")


def _plain(index: int, message: object) -> Message:
    """The message without anything but its text: its images are the record's, and no path in a file is followed."""
    if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in ("role", "content")):
        raise RejectedRecord(
            RejectReason.BAD_CONVERSATION, f'message {index} is no object with texts "role" and "content".'
        )
    return {"role": message["role"], "content": message["content"]}


def _cause(record: Record) -> RejectReason:
    """What the processor objected to: it tells people, in words."""
    for image in record.images:
        try:
            open_image(image)
        except TooManyPixels:
            return RejectReason.IMAGE_TOO_LARGE
        except JanusError:
            return RejectReason.BAD_IMAGE
    return RejectReason.BAD_CONVERSATION if record.messages else RejectReason.MALFORMED
