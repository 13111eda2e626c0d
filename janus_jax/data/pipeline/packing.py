"""Samples laid end to end into rows of one length, under budgets: every array has one shape and is nearly full."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from janus_jax.batch import NO_IMAGE, NO_POSITION, PADDING_SEGMENT, Batch
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.errors import JanusError
from janus_jax.processing import Processor, TokenSequence

_TRIED = 16
_TOGETHER = 3
_CLOSE = 1 / 256
"""How a row's last room is filled: the best of all groups of up to 3 of the 16 oldest samples that fit; a group of 3
only once it leaves less than this share of the row free."""


@dataclass(frozen=True)
class Budget:
    """What one row of a batch has room for.

    Attributes:
      tokens: L of the batch.
      und_images: U, images to understand.
      gen_images: G, images to generate.
      text_targets: T, supervised text places.
    """

    tokens: int = 4096
    und_images: int = 3
    gen_images: int = 5
    text_targets: int = 4096

    def __post_init__(self) -> None:
        if self.tokens < 2 or min(self.und_images, self.gen_images, self.text_targets) < 0:
            raise JanusError(f"{self} is no budget: it needs at least 2 places, and at least 0 of everything else.")

    @property
    def limits(self) -> Int[np.ndarray, "4"]:
        """As a vector, in the order of `Example.size`."""
        return np.array([self.tokens, self.und_images, self.gen_images, self.text_targets])


@dataclass(frozen=True, eq=False)
class Example:
    """A row, and what training wants to know of it.

    Attributes:
      example_id: "component/key", with "#epoch" from the second epoch on.
      row: the places.
      text_targets: as in `Batch`, counted within the row.
      gen_starts: as in `Batch`, counted within the row.
      gen_ids: as in `Batch`; None where the row has the images themselves, or none.
      gen_latents: as in `Batch`, beside the images; None where the VAE has yet to run.
      cut: how many places the over-long rule took off its end.
    """

    example_id: str
    row: TokenSequence
    text_targets: Int[np.ndarray, " T"]
    gen_starts: Int[np.ndarray, " G"]
    gen_ids: Int[np.ndarray, "G N"] | None = None
    gen_latents: Float[np.ndarray, "G h w C"] | None = None
    cut: int = 0

    @property
    def size(self) -> Int[np.ndarray, "4"]:
        """What it takes of a `Budget`: places, images to understand, images to generate, supervised text places."""
        row = self.row
        return np.array([len(row), len(row.und_images), len(self.gen_starts), len(self.text_targets)])


def truncate(sample: Example, budget: Budget) -> Example:
    """The over-long rule: text that is too long loses its end; anything else that does not fit is dropped.

    Cut is at the last place within the budget, of all places and of supervised ones. A sample with more images than
    the budget, with an image that the cut would reach, or with nothing left to learn gives none.

    Raises:
      RejectedRecord: the sample cannot be made to fit.
    """
    if (sample.size <= budget.limits).all():
        return sample
    length = min(budget.tokens, len(sample.row))
    if len(sample.text_targets) > budget.text_targets:
        length = min(length, int(sample.text_targets[budget.text_targets]))
    row, targets = sample.row, sample.text_targets[sample.text_targets < length]
    # An end-of-image belongs to its image.
    has_image = (row.und_patch_index[length - 1 :] != NO_IMAGE).any() or (
        row.gen_token_index[length:] != NO_IMAGE
    ).any()
    cut = replace(
        sample,
        row=replace(
            row,
            tokens=row.tokens[:length],
            answer=row.answer[:length],
            und_patch_index=row.und_patch_index[:length],
            gen_token_index=row.gen_token_index[:length],
        ),
        text_targets=targets,
        cut=len(row) - length,
    )
    if has_image or not (len(targets) or len(sample.gen_starts)) or not (cut.size <= budget.limits).all():
        size = ", ".join(f"{n} {name}" for n, name in zip(sample.size, _SIZE_NAMES, strict=True))
        raise RejectedRecord(RejectReason.TOO_LONG, f"it has {size}; a row has room for {_words(budget)}.")
    return cut


_SIZE_NAMES = ("places", "images to understand", "images to generate", "supervised text places")


def _words(budget: Budget) -> str:
    return ", ".join(f"{n} {name}" for n, name in zip(budget.limits, _SIZE_NAMES, strict=True))


def select_examples(sizes: Int[np.ndarray, "S 4"], room: Int[np.ndarray, "4"]) -> list[int]:
    """Which of the waiting samples, oldest first, make one row.

    The oldest always does, so that none waits for ever; then the oldest that fit follow, until the room that is left
    can be filled well by trying all groups of a few.
    """
    chosen: list[int] = []
    taken = np.zeros(len(sizes), bool)
    free = room.copy()
    while (fit := np.flatnonzero(~taken & (sizes <= free).all(axis=1))).size:
        group = fit[:1] if not chosen else _best_group(sizes, fit[:_TRIED], free, room[0] * _CLOSE)
        chosen.extend(group.tolist())
        taken[group] = True
        free = free - sizes[group].sum(axis=0)
    return chosen


def _best_group(
    sizes: Int[np.ndarray, "S 4"], fit: Int[np.ndarray, " F"], free: Int[np.ndarray, "4"], close: float
) -> Int[np.ndarray, " C"]:
    """The group that leaves fewest places free; the oldest alone as long as there is room for more than a group."""
    first, second, third = groups = _groups(len(fit))
    # The column past the end stands for "no further sample".
    columns = np.vstack([sizes[fit], np.zeros_like(free)]).T
    totals = columns[:, first] + columns[:, second] + columns[:, third]
    places = np.where((totals <= free[:, None]).all(axis=0), totals[0], 0)
    best = groups[:, places.argmax()]
    best = fit[best[best < len(fit)]]
    return best if len(best) < _TOGETHER or free[0] - places.max() <= close else fit[:1]


@functools.cache
def _groups(count: int) -> Int[np.ndarray, "3 C"]:
    """All groups of up to three of `count`, filled up with `count`."""
    groups = [
        (*group, *[count] * (_TOGETHER - size))
        for size in range(1, _TOGETHER + 1)
        for group in itertools.combinations(range(count), size)
    ]
    return np.ascontiguousarray(np.array(groups).T)


class PendingExample(NamedTuple):
    """A sample that was drawn and is not yet in a row, and where it was drawn."""

    sample: Example
    origin: tuple[int, int]


class Packer:
    """Takes samples as they are drawn and gives rows of them, each nearly full.

    Before each row, samples are drawn until `lookahead` of them wait; the row takes the oldest and those that fill it
    best. What is left waits for the next row, of the next batch too. So a sample comes at most that much later than it
    was drawn.

    Attributes:
      waiting: the samples between two rows, oldest first.
      filled: what all rows so far hold, in the order of `Example.size`.
      rows: how many those are.
      cut: how many samples in them the over-long rule has cut.
    """

    def __init__(self, budget: Budget, lookahead: int):
        self.budget = budget
        self.lookahead = lookahead
        self.waiting: list[PendingExample] = []
        self.filled = np.zeros(4, np.int64)
        self.rows = 0
        self.cut = 0

    def next_row(self, draw: Callable[[], PendingExample]) -> list[Example]:
        """One row's samples, in the order in which they lie in it."""
        while len(self.waiting) < self.lookahead:
            self.waiting.append(draw())
        sizes = np.stack([waiting.sample.size for waiting in self.waiting])
        chosen = select_examples(sizes, self.budget.limits)
        row = [self.waiting[index].sample for index in chosen]
        self.waiting = [waiting for index, waiting in enumerate(self.waiting) if index not in set(chosen)]
        self.filled += sizes[chosen].sum(axis=0)
        self.rows += 1
        self.cut += sum(sample.cut > 0 for sample in row)
        return row


class ImageShapes(NamedTuple):
    """What a batch holds of one image.

    Attributes:
      und_side: pixels along a side of one to understand.
      gen_side: of one to generate.
      ids: how many of one to generate come in place of its pixels.
      latents: height, width and channels of what comes beside the pixels of one to generate; None where nothing does.
    """

    und_side: int
    gen_side: int
    ids: int = 0
    latents: tuple[int, int, int] | None = None

    @classmethod
    def of(
        cls,
        sides: tuple[int, int],
        gen_tokens: int,
        latent_shape: tuple[int, int, int] | None,
        precomputed_image_tokens: bool,
    ) -> "ImageShapes":
        """Of a model's batches, by what its config or its processor says; `precomputed_image_tokens` as in `lay`."""
        ids = gen_tokens if precomputed_image_tokens and latent_shape is None else 0
        return cls(*sides, ids, latent_shape if precomputed_image_tokens else None)


def empty_batch(rows: int, budget: Budget, pictures: ImageShapes, pad: int = 0) -> Batch:
    """The batch of B rows that hold nothing.

    Args:
      pad: the padding's id.
    """

    def filled(width: int, value: int) -> Int[np.ndarray, "B W"]:
        return np.full((rows, width), value, np.int32)

    und, gen, ids, latents = pictures
    return Batch(
        tokens=filled(budget.tokens, pad),
        segment_ids=filled(budget.tokens, PADDING_SEGMENT),
        positions=filled(budget.tokens, 0),
        und_patch_index=filled(budget.tokens, NO_IMAGE),
        gen_token_index=filled(budget.tokens, NO_IMAGE),
        und_images=np.zeros((rows, budget.und_images, und, und, 3), np.uint8),
        gen_images=np.zeros((rows, 0 if ids else budget.gen_images, gen, gen, 3), np.uint8),
        text_targets=filled(budget.text_targets, NO_POSITION),
        gen_starts=filled(budget.gen_images, NO_POSITION),
        gen_ids=np.zeros((rows, budget.gen_images, ids), np.int32) if ids else None,
        gen_latents=None if latents is None else np.zeros((rows, budget.gen_images, *latents), np.float32),
    )


def pack(
    rows: Sequence[Sequence[Example]], budget: Budget, processor: Processor, precomputed_image_tokens: bool = False
) -> Batch:
    """The batch of B rows of samples that fit them.

    Args:
      rows: the samples of each.
      budget: L, U, G and T.
      processor: knows the padding id, the images' sizes and their numbers of places.
      precomputed_image_tokens: Fills `gen_ids`; `gen_images` is empty. For JanusFlow: fills `gen_latents` next to
        the pixels, which SigLIP sees.
    """
    n_und, n_gen = processor.und_tokens, processor.gen_tokens
    sides = processor.und_image_size, processor.gen_image_size
    pictures = ImageShapes.of(sides, n_gen, processor.latent_shape, precomputed_image_tokens)
    batch = empty_batch(len(rows), budget, pictures, processor.tokenizer.special.pad)
    for index, samples in enumerate(rows):
        places, und, gen, targets = 0, 0, 0, 0
        for segment, sample in enumerate(samples, start=PADDING_SEGMENT + 1):
            row, size = sample.row, sample.size
            here = np.s_[index, places : places + size[0]]
            batch.tokens[here] = row.tokens
            hidden = processor.masks_padding & (row.tokens == processor.tokenizer.special.pad)
            batch.segment_ids[here] = np.where(hidden, PADDING_SEGMENT, segment)
            batch.positions[here] = np.arange(size[0])
            batch.und_patch_index[here] = _moved(row.und_patch_index, und * n_und)
            batch.gen_token_index[here] = _moved(row.gen_token_index, gen * n_gen)
            batch.und_images[index, und : und + size[1]] = row.und_images
            gens = np.s_[index, gen : gen + size[2]]
            if batch.gen_ids is None:
                batch.gen_images[gens] = row.gen_images
            elif sample.gen_ids is not None:
                batch.gen_ids[gens] = sample.gen_ids
            if batch.gen_latents is not None and sample.gen_latents is not None:
                batch.gen_latents[gens] = sample.gen_latents
            assert batch.gen_starts is not None
            assert batch.text_targets is not None
            batch.gen_starts[gens] = sample.gen_starts + places
            batch.text_targets[index, targets : targets + size[3]] = sample.text_targets + places
            places, und, gen, targets = np.add((places, und, gen, targets), size)
    return batch


def _moved(image_places: Int[np.ndarray, "L"], offset: int) -> Int[np.ndarray, "L"]:
    return np.where(image_places == NO_IMAGE, NO_IMAGE, image_places + offset)
